"""What runs, and what runs again: nothing without a reason, and nothing less than what a change concerns."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cong.config import RunConfig
from cong.errors import ConfigError
from cong.pipeline import Board, run_pipeline
from cong.pipeline.attempt import read_lines
from cong.pipeline.conductor import _has_followed
from cong.pipeline.recipe import recipe_of
from cong.pipeline.task import task_of
from tests.pipeline.conftest import NUM_PROMPTS, Configure, changed, rewards, states

STAGES = ["align-weak", "sample", "cong-s", "own-samples", "cong", "plain-samples", "weak-sft", "evaluate", "report"]


def test_a_run_makes_every_stage_and_a_report(undisturbed: RunConfig) -> None:
    assert states(undisturbed) == dict.fromkeys(STAGES, "done")
    assert rewards(undisturbed).keys() == {"weak aligned", "ConG-S", "ConG", "WeakSFT"}
    page = (undisturbed.output_dir / "report.html").read_text()
    for text in ("Gains by gold", "ConG over ConG-S", "The bottleneck is", "own-samples", "<svg"):
        assert text in page
    assert "src=" not in page


def test_a_second_run_does_nothing(copied: RunConfig) -> None:
    def files() -> dict[str, int]:
        stages = copied.output_dir / "stages"
        return {str(path): path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}

    before = files()
    outcome = run_pipeline(copied)
    assert outcome.is_finished
    assert (outcome.ran, outcome.kept) == ([], STAGES)
    assert files() == before


OF_SAMPLE = {"sample", "cong-s", "own-samples", "cong", "evaluate", "report"}


@pytest.mark.parametrize(
    ("changes", "reason", "concerned"),
    [
        ({"sampling": {"weights": [1.0, -0.7]}}, "sampling.alpha 0.4 → 0.3", OF_SAMPLE),
        ({"pipeline": {"num_samples": 2}}, "pipeline.num_samples 1 → 2", OF_SAMPLE | {"plain-samples", "weak-sft"}),
        ({"pipeline": {"align": {"learning_rate": 1e-4}}}, "pipeline.align.learning_rate 0.0003 → 0.0001", set(STAGES)),
        (
            {"pipeline": {"prefer": {"objective": {"parameters": {"beta": 0.2}}}}},
            "pipeline.prefer.objective.parameters.beta 0.5 → 0.2",
            {"cong", "evaluate", "report"},
        ),
        (
            {"pipeline": {"own_sampling": {"seed": 51}}},
            "pipeline.own_sampling.seed 50 → 51",
            {"own-samples", "cong", "evaluate", "report"},
        ),
        (
            {"pipeline": {"plain_sampling": {"temperature": 0.5}}},
            "pipeline.plain_sampling.temperature 1.0 → 0.5",
            {"plain-samples", "weak-sft", "evaluate", "report"},
        ),
        (
            {"pipeline": {"imitate": {"learning_rate": 1e-4}}},
            "pipeline.imitate.learning_rate 0.0002 → 0.0001",
            {"cong-s", "own-samples", "cong", "weak-sft", "evaluate", "report"},
        ),
        ({"train": {"seed": 1}}, "train.seed 0 → 1", set(STAGES)),
        ({"evaluation": {"sampling": {"seed": 3}}}, "evaluation.sampling.seed 0 → 3", {"evaluate", "report"}),
        (
            {"stream": {"read": {"max_records": 16}}},
            "stream.read.max_records not set → 16",
            {"cong-s", "own-samples", "cong", "weak-sft", "evaluate", "report"},
        ),
        (
            {"stream": {"read": {"is_deduplicated": False}}},
            "stream.read.is_deduplicated not set → False",
            {"cong-s", "own-samples", "cong", "weak-sft", "evaluate", "report"},
        ),
        ({"pipeline": {"methods": ["cong"]}}, "weak-sft is gone", {"evaluate", "report"}),
        ({"engine": {"max_running": 4}}, "", set()),
        ({"train": {"checkpoints": {"every_steps": 1}}}, "", set()),
        ({"train": {"batches": {"max_tokens_per_micro_batch": 256}}}, "", set()),
        ({"pipeline": {"executor": "subprocess"}}, "", set()),
        ({"pipeline": {"overlaps": True}}, "", set()),
    ],
)
def test_a_changed_setting_concerns_exactly_the_stages_behind_it(
    undisturbed: RunConfig, changes: dict[str, Any], reason: str, concerned: set[str]
) -> None:
    board = Board(changed(undisturbed, changes))
    standings = board.survey()
    assert {one.stage.name for one in standings if one.state != "done"} == concerned
    due = [one for one in standings if one.is_due]
    assert all(reason in one.reason for one in due)
    assert bool(due) == bool(concerned)
    for line in board.causes(standings):
        assert reason in line


def test_other_content_under_the_same_name_is_noticed(copied: RunConfig, world: Path, tmp_path: Path) -> None:
    weak = tmp_path / "weak"
    shutil.copytree(world / "strong-base", weak)
    other = changed(copied, {"models": {"base": {"source": str(weak)}}})
    (first, *rest) = Board(other).survey()
    assert (first.state, first.reason) == ("changed", "another weak-base")
    assert all(one.state == "waits" for one in rest)


def test_a_change_and_its_return_make_each_thing_once(copied: RunConfig) -> None:
    changes = {"pipeline": {"plain_sampling": {"temperature": 0.5}}}
    outcome = run_pipeline(changed(copied, changes))
    assert outcome.ran == ["plain-samples", "weak-sft", "evaluate", "report"]
    assert run_pipeline(copied).ran == []
    assert run_pipeline(changed(copied, changes)).ran == []


def test_more_prompts_take_over_what_is_there(copied: RunConfig, world: Path, tmp_path: Path) -> None:
    lines = (world / "prompts.jsonl").read_text().splitlines()
    more = tmp_path / "more.jsonl"
    more.write_text("\n".join([json.dumps({"prompt": "Sabcde=", "prompt_id": "new"}), *lines]) + "\n")
    config = changed(copied, {"pipeline": {"methods": ["weak-sft"], "prompts": {"source": str(more)}}})
    run_pipeline(config)
    (sampled,) = [one for one in Board(config).survey() if one.stage.name == "plain-samples"]
    assert sampled.folder is not None
    (session,) = read_lines(sampled.folder / "sessions.jsonl")
    assert (session["num_drawn"], session["num_inherited"]) == (1, NUM_PROMPTS)


def test_a_lost_product_is_made_again_and_changes_nothing_else(copied: RunConfig) -> None:
    (made,) = [one for one in Board(copied).survey() if one.stage.name == "weak-sft"]
    assert made.folder is not None
    (made.folder / "model" / "model.safetensors").unlink()
    (standing,) = [one for one in Board(copied).survey() if one.stage.name == "weak-sft"]
    assert standing.state == "damaged"
    assert "model.safetensors is gone" in standing.reason
    assert run_pipeline(copied).ran == ["weak-sft"]


def test_training_that_was_begun_on_a_stream_made_anew_since_begins_again(
    copied: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = (copied.output_dir / "stages" / "weak-sft").iterdir()
    (folder / "complete.json").unlink()
    begun = json.loads((folder / "begun.json").read_text())
    (folder / "begun.json").write_text(json.dumps({**begun, "streams": {"samples": "another"}}))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "of-another-stream").touch()
    assert run_pipeline(copied).ran == ["weak-sft"]
    assert "weak-sft was begun on a stream that has been made anew since" in caplog.text


def test_steps_are_planned_for_all_samples_only_where_training_follows_them(undisturbed: RunConfig) -> None:
    board = Board(undisturbed)
    board.survey()
    (stage,) = [one for one in board.stages if one.name == "cong-s"]
    (samples,) = [product for role, product in board.products(stage).items() if role == "samples"]
    some_cut = replace(samples, facts={**samples.facts, "num_expected": 24, "num_whole": 16})
    inputs = {**board.products(stage), "samples": some_cut}
    beside = changed(undisturbed, {"pipeline": {"overlaps": True}})
    assert recipe_of(stage, inputs, undisturbed)["planned steps"] == 2
    assert recipe_of(stage, inputs, beside)["planned steps"] == 3
    epochs = changed(undisturbed, {"pipeline": {"overlaps": True, "imitate": {"num_epochs": 2}}})
    assert "planned steps" not in recipe_of(stage, inputs, epochs)


def test_steps_behind_a_filter_of_ones_own_are_planned_only_where_training_follows(undisturbed: RunConfig) -> None:
    """How many samples pass is known from reading alone, so the two plan other learning rates."""
    board = Board(undisturbed)
    board.survey()
    (stage,) = [one for one in board.stages if one.name == "cong-s"]
    read = {"stream": {"read": {"filter": {"min_tokens": 12}}}}
    alone, beside = (changed(undisturbed, {**read, "pipeline": {"overlaps": each}}) for each in (False, True))
    recipe = recipe_of(stage, board.products(stage), alone)
    assert "planned steps" not in recipe
    assert recipe_of(stage, board.products(stage), beside) == {**recipe, "planned steps": 3}
    whole = {"stream": {"read": {"filter": {"finish_reasons": ["stop"]}}}, "pipeline": {"overlaps": False}}
    assert "planned steps" in recipe_of(stage, board.products(stage), changed(undisturbed, whole))


def test_fewer_records_are_as_many_where_training_follows_them(copied: RunConfig, tmp_path: Path) -> None:
    few = changed(copied, {"stream": {"read": {"max_records": 16}}, "pipeline": {"methods": ["weak-sft"]}})
    few = changed(few, {"evaluation": {"prompts": None}})
    assert run_pipeline(few).ran == ["weak-sft", "report"]
    beside = changed(few, {"pipeline": {"overlaps": True}})
    assert run_pipeline(beside).ran == []
    board = Board(beside)
    (made,) = [one for one in board.survey() if one.stage.name == "weak-sft"]
    assert made.folder is not None
    task = task_of(made.stage, board.products(made.stage), beside, made.folder)
    assert task.config.stream.read.max_records == 16
    assert json.loads((made.folder / "summary.json").read_text())["step"] == 2
    assert _has_followed(task)


def test_copies_of_checkpoints_and_runs_of_trackers_are_those_of_one_stage(undisturbed: RunConfig) -> None:
    settings = {"checkpoints": {"upload": "s3://bucket/run/"}, "logging": {"run_name": "mine"}}
    board = Board(changed(undisturbed, {"train": settings}))
    num_trained = 0
    for one in board.survey():
        assert one.state == "done"
        if one.stage.kind == "train" and one.folder is not None:
            train = task_of(one.stage, board.products(one.stage), board.config, one.folder).config.train
            assert train.checkpoints.upload == f"s3://bucket/run/{one.stage.name}/{one.folder.name}"
            assert train.logging.run_name == f"mine-{one.stage.name}-{one.folder.name}"
            num_trained += 1
    assert num_trained == 4


def test_bytes_that_changed_are_noticed(copied: RunConfig) -> None:
    (made,) = [one for one in Board(copied).survey() if one.stage.name == "sample"]
    assert made.folder is not None
    segment = next((made.folder / "stream").rglob("*.parquet"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    assert states(copied)["sample"] == "damaged"


def test_a_second_pipeline_in_the_same_folder_is_refused(configure: Configure) -> None:
    config = configure()

    class Within:
        def start(self, task: object, stop: object) -> object:
            run_pipeline(config)
            raise AssertionError("two pipelines are at work in one folder")

    with pytest.raises(ConfigError, match="another pipeline is at work"):
        run_pipeline(config, Within())  # type: ignore[arg-type]


def test_a_run_until_a_stage_makes_what_it_needs_and_no_more(configure: Configure) -> None:
    config = configure({"pipeline": {"methods": ["weak-sft"]}, "evaluation": {"prompts": None}})
    outcome = run_pipeline(config, until="plain-samples")
    assert (outcome.ran, outcome.is_finished, outcome.report) == (["align-weak", "plain-samples"], True, None)
    with pytest.raises(ConfigError, match="no stage 'plain' in this pipeline; its stages are align-weak, "):
        run_pipeline(config, until="plain")
    assert run_pipeline(config).kept == ["align-weak", "plain-samples"]
