"""Rivals, ways to run, and other origins of samples: each is the same stages in another arrangement."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from cong.config import RunConfig
from cong.errors import ConfigError
from cong.pipeline import METHODS, Board, Executor, InProcess, Running, Subprocess, Task, run_pipeline
from cong.pipeline.attempt import read_lines
from cong.train.stopping import StopRequest
from tests.client.service_process import ServiceThread
from tests.pipeline.conftest import Configure, changed, rewards
from tests.pipeline.test_kill import network_fingerprints, stream_keys


def of_the_pair(undisturbed: RunConfig, output_dir: Path, changes: dict[str, Any]) -> RunConfig:
    """One method on the weak pair that is made already, without judgement."""
    aligned = next(one.marker.product(one.folder) for one in Board(undisturbed).survey() if one.marker and one.folder)
    given = {
        "output_dir": str(output_dir),
        "models": {"aligned": {"source": aligned.location}},
        "evaluation": {"prompts": None},
    }
    return changed(changed(undisturbed, given), changes)


def test_all_methods_and_a_ceiling_run_side_by_side(copied: RunConfig, world: Path) -> None:
    every = {"methods": list(METHODS), "gold_answers": str(world / "gold-answers.jsonl")}
    config = changed(copied, {"pipeline": every})
    outcome = run_pipeline(config)
    assert set(outcome.kept) == {
        "align-weak",
        "sample",
        "cong-s",
        "own-samples",
        "cong",
        "plain-samples",
        "weak-sft",
    }
    assert rewards(config).keys() == {
        *("weak aligned", "ConG-S", "ConG", "WeakSFT", "AuxConf", "WSPO", "self ConG-S", "self ConG", "ceiling")
    }
    prints = network_fingerprints(config)
    assert len(set(prints.values())) == len(prints)
    assert "Gap between weak aligned and ceiling" in (config.output_dir / "report.md").read_text()


def test_a_process_per_stage_that_overlaps_makes_the_same(undisturbed: RunConfig, tmp_path: Path) -> None:
    config = of_the_pair(
        undisturbed, tmp_path / "out", {"pipeline": {"methods": ["weak-sft"], "overlaps": True}, "evaluation": {}}
    )
    begun: list[str] = []

    class Watched(Subprocess):
        def start(self, task: Task, stop: StopRequest) -> Running:
            begun.append(task.stage)
            return super().start(task, stop)

    outcome = run_pipeline(config, Watched())
    assert begun == ["plain-samples", "weak-sft"], "the training begins with the samples, and runs once"
    assert outcome.ran == ["plain-samples", "weak-sft", "report"]
    assert network_fingerprints(config)["weak-sft"] == network_fingerprints(undisturbed)["weak-sft"]
    assert stream_keys(config)["plain-samples"] == stream_keys(undisturbed)["plain-samples"]


def test_a_strong_model_with_other_tokens_learns_from_the_text(
    undisturbed: RunConfig, world: Path, tmp_path: Path
) -> None:
    strong = tmp_path / "strong"
    shutil.copytree(world / "strong-base", strong)
    tokenizer = json.loads((strong / "tokenizer_config.json").read_text())
    (strong / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": "{{ messages }}"}))
    config = of_the_pair(
        undisturbed,
        tmp_path / "out",
        {"models": {"strong": {"source": str(strong)}}, "pipeline": {"methods": ["cong"]}},
    )
    outcome = run_pipeline(config)
    assert outcome.ran == ["sample", "sample-text", "cong-s", "own-samples", "cong", "report"]
    made = {one.stage.name: one for one in Board(config).survey()}
    same = {one.stage.name: one for one in Board(undisturbed).survey()}
    for name in ("cong-s", "cong"):
        mine, theirs = made[name].marker, same[name].marker
        assert mine is not None
        assert theirs is not None
        # The tokens are the same in fact, so what is learned from the text is what is learned from them.
        assert mine.facts["weights"] == theirs.facts["weights"]


def test_a_method_that_compares_tokens_is_refused_where_they_differ(
    undisturbed: RunConfig, world: Path, tmp_path: Path
) -> None:
    strong = tmp_path / "strong"
    shutil.copytree(world / "strong-base", strong)
    tokenizer = json.loads((strong / "tokenizer_config.json").read_text())
    (strong / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": "{{ messages }}"}))
    changes = {"models": {"strong": {"source": str(strong)}}, "pipeline": {"methods": ["wspo"]}}
    with pytest.raises(ConfigError, match="'wspo', which compares single tokens"):
        Board(changed(undisturbed, changes))


def test_a_run_that_is_asked_to_stop_keeps_what_it_has(configure: Configure) -> None:
    config = configure({"pipeline": {"methods": ["weak-sft"]}, "evaluation": {"prompts": None}})
    stop = StopRequest()

    class StopsInSampling(InProcess):
        def start(self, task: Task, stop: StopRequest) -> Running:
            if task.kind == "sample":
                stop.set()
            return super().start(task, stop)

    outcome = run_pipeline(config, StopsInSampling(), stop=stop)
    assert (outcome.ran, outcome.is_finished) == (["align-weak"], False)
    again = run_pipeline(config)
    assert (again.ran, again.kept) == (["plain-samples", "weak-sft", "report"], ["align-weak"])
    (sampled,) = [one.folder for one in Board(config).survey() if one.stage.name == "plain-samples"]
    assert sampled is not None
    first, second = read_lines(sampled / "sessions.jsonl")
    assert first["num_drawn"] > 0
    assert first["num_drawn"] + second["num_drawn"] >= 24


def test_a_service_draws_the_same_samples_in_the_same_order(
    undisturbed: RunConfig, world: Path, tmp_path: Path
) -> None:
    config = of_the_pair(undisturbed, tmp_path / "out", {"pipeline": {"methods": ["cong"]}})
    service = ServiceThread(tmp_path / "service")
    service.config = service.config.model_copy(
        update={"models": config.models.model_copy(update={"strong": type(config.models.strong)()})}
    )
    with service:
        asked = changed(config, {"pipeline": {"url": service.url}})
        only_samples(asked)
    assert stream_keys(asked)["sample"] == stream_keys(undisturbed)["sample"]


def test_a_service_with_other_networks_is_refused(undisturbed: RunConfig, tmp_path: Path) -> None:
    config = of_the_pair(undisturbed, tmp_path / "out", {"pipeline": {"methods": ["cong"]}})
    with ServiceThread(tmp_path / "service") as service:
        asked = changed(config, {"pipeline": {"url": service.url}})
        with pytest.raises(ConfigError, match="start the service with it"):
            run_pipeline(asked)


def only_samples(config: RunConfig) -> None:
    """Run until the first stage that draws is complete."""
    stop = StopRequest()

    class StopsAfterSampling(InProcess):
        def start(self, task: Task, stop: StopRequest) -> Running:
            if task.kind != "sample":
                stop.set()
            return super().start(task, stop)

    executor: Executor = StopsAfterSampling()
    assert run_pipeline(config, executor, stop=stop).ran == ["sample"]
    assert threading.active_count() < 100
