"""Prompts that cannot be answered: named, tried again, and in the way only as far as is allowed."""

import json
from pathlib import Path
from typing import Any

import pytest

from cong.config import RunConfig
from cong.errors import ConfigError, PipelineError
from cong.lab.networks import prompt_ids
from cong.pipeline import Board, Standing, Subprocess, run_pipeline
from cong.pipeline.attempt import read_lines
from cong.stream import StreamReader, open_store
from tests.pipeline.conftest import NUM_PROMPTS, Configure, changed

TINY = {"kv_memory_bytes": 52_000}
"""Room for 48 tokens of the weak model: prompts of the world's length, and no longer ones."""


def sampled(config: RunConfig) -> Standing:
    (found,) = [one for one in Board(config).survey() if one.stage.name == "plain-samples"]
    return found


def failures(config: RunConfig) -> list[dict[str, Any]]:
    folder = sampled(config).folder
    assert folder is not None
    return read_lines(folder / "failures.jsonl")


@pytest.fixture
def with_long(configure: Configure, copied: RunConfig, world: Path, tmp_path: Path) -> RunConfig:
    """One method on the finished weak pair, with one prompt that is too long and a row that is none."""
    lines = (world / "prompts.jsonl").read_text().splitlines()
    odd = [json.dumps({"prompt": "S" + "abcdefghij" * 3 + "=", "prompt_id": "long"}), json.dumps({"nothing": 1})]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join([*lines[:5], *odd, *lines[5:]]) + "\n")
    (aligned,) = [one.marker.product(one.folder) for one in Board(copied).survey() if one.marker and one.folder][:1]
    return configure(
        {
            "models": {"aligned": {"source": aligned.location}},
            "engine": TINY,
            "pipeline": {"methods": ["weak-sft"], "prompts": {"source": str(prompts)}},
            "evaluation": {"prompts": None},
        }
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pipeline": {"imitate": {"objective": {"name": "sfd"}}}}, r"pipeline\.imitate: objective 'sfd' is not known"),
        (
            {"pipeline": {"imitate": {"objective": {"name": "dpo"}}}},
            r"pipeline\.imitate\.objective is 'dpo', which is trained on pairs, and cong-s has samples",
        ),
        (
            {"pipeline": {"prefer": {"objective": {"name": "sft"}}}},
            r"pipeline\.prefer\.objective is 'sft', which is trained on samples, and cong has pairs",
        ),
        (
            {"pipeline": {"prefer": {"objective": {"name": "cw_dpo"}}}},
            r"pipeline\.prefer\.objective is 'cw_dpo', which needs log-probs of the 'aligned' network, and cong",
        ),
        (
            {"train": {"evaluation": {"data": {"kind": "pairs", "path": "judged.jsonl"}}}},
            r"train\.evaluation\.data is of kind 'pairs', and cong-s is trained on samples; set .*held_out_share",
        ),
        ({"train": {"num_epochs": 2}}, r"train\.num_epochs is set, and every stage has its own"),
    ],
)
def test_what_no_training_can_do_is_told_before_anything_runs(
    configure: Configure, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Board(configure(changes))


def test_failed_prompts_end_the_stage_by_name_and_are_listed(with_long: RunConfig) -> None:
    with pytest.raises(PipelineError, match=r"plain-samples: 2 of 26 samples were given up"):
        run_pipeline(with_long)
    assert [(one.get("prompt_id"), one["error"]) for one in failures(with_long)] == [
        (None, "BadRow"),
        ("long", "PromptTooLong"),
    ]
    assert sampled(with_long).state == "continues"


def test_failed_prompts_are_tried_again_and_nothing_else_is(with_long: RunConfig) -> None:
    with pytest.raises(PipelineError):
        run_pipeline(with_long)
    roomy = changed(with_long, {"engine": {"kv_memory_bytes": 20_000_000}, "pipeline": {"max_failed_share": 0.05}})
    assert run_pipeline(roomy).ran == ["plain-samples", "weak-sft", "report"]
    assert [one["error"] for one in failures(roomy)] == ["BadRow"]
    folder = sampled(roomy).folder
    assert folder is not None
    first, second = read_lines(folder / "sessions.jsonl")
    assert (first["num_drawn"], second["num_drawn"]) == (NUM_PROMPTS, 1)
    records = list(StreamReader(open_store(str(folder / "stream"))).records())
    assert records[-1].prompt.prompt_id == "long"


def test_a_prompt_of_tokens_that_another_has_is_named_in_every_attempt(
    configure: Configure, copied: RunConfig, world: Path, tmp_path: Path
) -> None:
    first, *rest = (json.loads(line) for line in (world / "prompts.jsonl").read_text().splitlines())
    twin = {"token_ids": list(prompt_ids(first["prompt"])), "prompt_id": "twin"}
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in (first, *rest, twin)))
    (aligned,) = [one.marker.product(one.folder) for one in Board(copied).survey() if one.marker and one.folder][:1]
    config = configure(
        {
            "models": {"aligned": {"source": aligned.location}},
            "pipeline": {"methods": ["weak-sft"], "prompts": {"source": str(prompts)}},
            "evaluation": {"prompts": None},
        }
    )
    for _ in range(2):
        with pytest.raises(PipelineError, match=r"1 of 25 samples were given up, .* Repeated: .* the same tokens"):
            run_pipeline(config)
        assert [(one["prompt_id"], one["error"]) for one in failures(config)] == [("twin", "Repeated")]


def test_an_allowed_share_of_failures_is_reported(with_long: RunConfig) -> None:
    allowed = changed(with_long, {"pipeline": {"max_failed_share": 0.1}})
    assert run_pipeline(allowed).is_finished
    page = (allowed.output_dir / "report.html").read_text()
    assert "Prompts without samples" in page
    assert "PromptTooLong" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": {"methods": ["congo"]}}, "known are cong, weak-sft"),
        ({"pipeline": {"preferences": ""}}, "needs preferences, and it is not given; set pipeline.preferences"),
        ({"models": {"strong": {"source": ""}}}, "needs strong-base, and it is not given; set models.strong.source"),
        ({"models": {"strong": {"source": "org/name"}}}, "give a folder, or a revision"),
        ({"pipeline": {"prompts": {"source": ""}}}, "set pipeline.prompts.source"),
        ({"evaluation": {"judges": None}}, "judges"),
        ({"train": {"num_epochs": 3}}, "train.num_epochs is set, and every stage has its own"),
        ({"models": {"root": "/"}}, "models.root is for services"),
        ({"evaluation": {"candidates": {"ConG": {"source": "x"}}}}, "is the pipeline's own"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    configure: Configure, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_pipeline(configure(changes))
    assert not (tmp_path / "out" / "stages").exists()


def test_a_stage_that_is_refused_in_its_own_process_says_where_the_reason_stands(
    configure: Configure, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure({"models": {"device": "cuda:99"}})
    with pytest.raises(PipelineError, match="align-weak ended by exit code 2, for the reason above"):
        run_pipeline(config, Subprocess())
    assert "device is 'cuda:99', and torch sees" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [("\n", "holds no prompts"), ('{"prompt": "Sab="}\n{"prompt": "Scd=\n', "jsonl:2 is not JSON")]
)
def test_held_out_prompts_that_cannot_be_used_are_refused_before_anything_runs(
    configure: Configure, tmp_path: Path, text: str, message: str
) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(text)
    with pytest.raises(ConfigError, match=message):
        run_pipeline(configure({"evaluation": {"prompts": str(held_out)}}))
    assert not (tmp_path / "out" / "stages").exists()
