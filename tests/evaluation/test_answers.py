"""Answers from files: joined by prompt id, and nothing is dropped without being named."""

import json
from pathlib import Path
from typing import Any

import pytest

from cong.config import RunConfig
from cong.config.evaluation import EvaluationConfig
from cong.errors import ConfigError, EvaluationError
from cong.evaluation import Answer, read_answers
from cong.evaluation.answers import held_out_prompts
from cong.schemas import Prompt

PROMPTS = [Prompt(text="one", prompt_id="p1"), Prompt(text="two"), Prompt(messages=[{"role": "user", "content": "3"}])]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    return path


def test_answers_are_joined_by_id_text_or_messages_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"messages": [{"role": "user", "content": "3"}], "completion": [{"role": "assistant", "content": "c"}]},
        {"prompt": "two", "output": "b\u2028still b", "other": 1},
        {"prompt_id": "p1", "answer": "a"},
        {"prompt_id": "p1", "response": ""},
    )
    found = read_answers("x", path, PROMPTS)
    assert [(one.text, one.sample_index) for one in found.answers] == [
        ("a", 0),
        ("", 1),
        ("b\u2028still b", 0),
        ("c", 0),
    ]
    assert (found.missing, found.unknown, found.label) == ((), (), "x, given")


def test_missing_and_unknown_prompts_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt_id": "p1", "answer": "a"}, {"prompt_id": "p9", "answer": "z"})
    found = read_answers("x", path, PROMPTS)
    assert found.missing == tuple(prompt.prompt_id for prompt in PROMPTS[1:])
    assert found.unknown == ("p9",)


def test_a_file_that_answers_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt_id": "p9", "answer": "z"})
    with pytest.raises(EvaluationError, match="no answer to any of the 3 prompts"):
        read_answers("x", path, PROMPTS)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt_id": "p1"}, r"a\.jsonl:1 has no answer; give one of answer, completion"),
        ({"prompt_id": "p1", "answer": "a", "output": "b"}, "has answer and output; give one"),
        ({"answer": "a"}, "has none of prompt_id, prompt, messages"),
        ({"prompt_id": "p1", "answer": 3}, "answer holds a int; a text is needed"),
        ({"prompt": 7, "answer": "a"}, "is no answer"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_answers("x", write(tmp_path / "a.jsonl", row), PROMPTS)


def test_half_a_character_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt_id": "p1", "answer": "\ud800"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.jsonl:1: answer holds half of a surrogate pair; write whole characters"):
        read_answers("x", path, PROMPTS)


def test_what_is_judged_has_an_identity_of_its_own() -> None:
    answer = Answer(PROMPTS[0], "a")
    others = [
        Answer(PROMPTS[1], "a"),
        Answer(PROMPTS[0], "b"),
        Answer(PROMPTS[0], "a", token_ids=(1,), tokenizer_fingerprint="t"),
        Answer(PROMPTS[0], "a", is_truncated=True),
    ]
    assert answer.key == Answer(PROMPTS[0], "a", sample_index=3).key
    assert len({answer.key, *(other.key for other in others)}) == 5


def test_held_out_prompts_are_distinct_and_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"})
    with pytest.raises(ConfigError, match="is there twice"):
        held_out_prompts(EvaluationConfig(prompts=path))
    assert len(held_out_prompts(EvaluationConfig(prompts=path, num_prompts=2))) == 2
    with pytest.raises(ConfigError, match=r"num_prompts is 4, and .* has 3"):
        held_out_prompts(EvaluationConfig(prompts=path, num_prompts=4))
    with pytest.raises(ConfigError, match=r"evaluation\.prompts is not set"):
        held_out_prompts(RunConfig().evaluation)
