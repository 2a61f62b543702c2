"""The world as files: what other programs read is what the lab's own stages use."""

import json
from pathlib import Path
from typing import Any

import pytest

from cong.config import LabConfig
from cong.errors import ConfigError
from cong.lab.export import MARK, begin, export_texts
from cong.lab.networks import prompt_ids, response_ids
from cong.lab.stages import draw_preferences, held_out_prompts, training_prompts
from cong.lab.world import gold_reward
from cong.prompts import open_prompts


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_hold_the_lab_s_own_prompts_pairs_and_answers(tmp_path: Path) -> None:
    config = LabConfig.model_validate(
        {"num_training_prompts": 30, "alignment": {"num_pairs": 20}, "evaluation": {"num_prompts": 10}}
    )
    files = export_texts(config, tmp_path)
    asked = [prompt.text for prompt in open_prompts(str(files["prompts"])).strict()]
    assert asked == training_prompts(config)
    judged = [prompt.text for prompt in open_prompts(str(files["held-out prompts"])).strict()]
    assert judged == held_out_prompts(config)
    assert not set(asked) & set(judged)
    pairs = [
        (prompt_ids(row["prompt"]), (response_ids(row["chosen"]), response_ids(row["rejected"])))
        for row in rows(files["preferences"])
    ]
    expected = draw_preferences(config, config.alignment.preference_noise)
    assert pairs == [(example.prompt_ids, example.responses) for example in expected]
    answers = rows(files["ideal answers to them"])
    assert [row["prompt"] for row in answers] == asked
    assert all(gold_reward(row["prompt"], row["answer"]) == 1.0 for row in answers)


@pytest.mark.parametrize("name", ["weak-base", "prompts.jsonl"])
def test_what_no_export_wrote_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"holds {name}, and no {MARK}.*give another folder"):
        begin(LabConfig(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_export_takes_the_place_of_an_earlier_one_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        begin(LabConfig(), tmp_path)
        (tmp_path / "weak-base").mkdir(exist_ok=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
