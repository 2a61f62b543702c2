"""The lab's world in small, as files; a pipeline over it that has run once, and configurations of others."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.config import LabConfig, RunConfig
from cong.config.loading import check, merge
from cong.lab.bases import SHIPPED
from cong.lab.export import export_texts
from cong.pipeline import Board, run_pipeline

NUM_PROMPTS, NUM_HELD_OUT, NUM_PAIRS = 24, 12, 64

Configure = Callable[..., RunConfig]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    handlers, num_threads = list(logging.getLogger().handlers), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, prompts, preferences, ideal answers and held-out prompts."""
    folder = tmp_path_factory.mktemp("world")
    lab = LabConfig.model_validate(
        {
            "num_training_prompts": NUM_PROMPTS,
            "alignment": {"num_pairs": NUM_PAIRS},
            "evaluation": {"num_prompts": NUM_HELD_OUT},
        }
    )
    export_texts(lab, folder)
    for name in ("weak", "strong"):
        shutil.copytree(SHIPPED / f"{name}_base", folder / f"{name}-base", ignore=shutil.ignore_patterns("recipe.json"))
    return folder


def content_of(world: Path, output_dir: Path) -> dict[str, Any]:
    """A configuration of few steps, as a file would hold it."""
    plain = {"temperature": 1.0, "max_tokens": 20}
    return {
        "output_dir": str(output_dir),
        "cache_dir": str(output_dir / "cache"),
        "num_threads": 1,
        "models": {
            "base": {"source": str(world / "weak-base")},
            "strong": {"source": str(world / "strong-base")},
            "dtype": "float32",
        },
        "sampling": {"alpha": 0.4, "max_tokens": 20},
        "engine": {"kv_memory_bytes": 20_000_000, "kernel": "torch"},
        "stream": {"write": {"max_age_s": 0.2, "rows_per_segment": 8}},
        "train": {
            "batches": {"batch_size": 8, "max_tokens_per_micro_batch": 512, "max_example_tokens": 64},
            "schedule": {"num_warmup_steps": 1},
            "precision": "float32",
            "checkpoints": {"every_steps": 2},
            "logging": {"has_tensorboard": False, "has_plots": False},
        },
        "pipeline": {
            "methods": ["cong", "weak-sft"],
            "prompts": {"source": str(world / "prompts.jsonl")},
            "preferences": str(world / "preferences.jsonl"),
            "plain_sampling": plain,
            "own_sampling": {**plain, "seed": 50},
            "align": {"objective": {"name": "dpo", "parameters": {"beta": 1.0}}, "learning_rate": 3e-4},
            "imitate": {"learning_rate": 2e-4, "num_epochs": 1},
            "prefer": {"learning_rate": 3e-4},
            "aux_conf": {"learning_rate": 2e-4, "num_epochs": 1},
            "wspo": {"learning_rate": 2e-4},
            "ceiling_training": {"learning_rate": 6e-4, "num_epochs": 1},
        },
        "evaluation": {
            "prompts": str(world / "held-out.jsonl"),
            "sampling": {"max_tokens": 20},
            "judges": {"gold": {"kind": "program", "function": "cong.lab.world:gold_reward"}},
            "num_resamples": 100,
        },
    }


@pytest.fixture
def configure(world: Path, tmp_path: Path) -> Configure:
    """A configuration into a folder of its own, unless another is given; changes are merged in."""

    def build(changes: dict[str, Any] | None = None, output_dir: Path | None = None) -> RunConfig:
        return check(RunConfig, merge(content_of(world, output_dir or tmp_path / "out"), changes or {}), "test")

    return build


@pytest.fixture(scope="session")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A pipeline that ran from end to end, to be looked at and not changed."""
    config = check(RunConfig, content_of(world, tmp_path_factory.mktemp("undisturbed") / "out"), "test")
    assert run_pipeline(config).is_finished
    return config


@pytest.fixture
def copied(undisturbed: RunConfig, tmp_path: Path) -> RunConfig:
    """The same in a folder of its own, to be changed."""
    shutil.copytree(undisturbed.output_dir, tmp_path / "copy")
    return undisturbed.model_copy(update={"output_dir": tmp_path / "copy", "cache_dir": tmp_path / "copy" / "cache"})


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """A configuration with some settings changed."""
    return check(RunConfig, merge(config.model_dump(mode="json"), changes), "test")


def states(config: RunConfig) -> dict[str, str]:
    """Stage -> state."""
    return {one.stage.name: one.state for one in Board(config).survey()}


def rewards(config: RunConfig) -> dict[str, float]:
    """Mean gold reward of every candidate."""
    (found,) = [one.folder for one in Board(config).survey() if one.stage.name == "evaluate"]
    assert found is not None
    result = json.loads((found / "evaluation.json").read_text())
    return {one["candidate"]: one["rewards"]["gold"]["reward"]["mean"] for one in result["sets"]}
