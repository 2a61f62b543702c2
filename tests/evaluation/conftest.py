"""The lab's weak pair as two folders, held-out prompts as a file, and a configuration that judges them."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.config import RunConfig, load_config
from cong.lab.bases import SHIPPED
from cong.lab.networks import load_network, save_network
from cong.lab.stages import align, held_out_prompts
from cong.lab.world import ideal_response

GOLD: dict[str, Any] = {"kind": "program", "function": "cong.lab.world:gold_reward"}
NUM_PROMPTS = 60


@dataclass(frozen=True)
class LabPair:
    """Folders of the shipped weak model and of the same after a short alignment, and prompts for both."""

    base: Path
    aligned: Path
    prompts: Path
    ideal: Path
    """A file of answers with the full gold reward."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    handlers, num_threads = list(logging.getLogger().handlers), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture(scope="session")
def lab_pair(tmp_path_factory: pytest.TempPathFactory) -> LabPair:
    root = tmp_path_factory.mktemp("lab-pair")
    lab = load_config(RunConfig, overrides=["lab.alignment.num_pairs=2000"]).lab
    base = SHIPPED / "weak_base"
    save_network(align(load_network(base), lab).network, root / "aligned")
    asked = held_out_prompts(lab)[:NUM_PROMPTS]
    prompts, ideal = root / "prompts.jsonl", root / "ideal.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": one, "prompt_id": one[:-1]}) + "\n" for one in asked))
    rows = [{"prompt_id": one[:-1], "answer": ideal_response(one)} for one in asked]
    ideal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LabPair(base, root / "aligned", prompts, ideal)


Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(lab_pair: LabPair, tmp_path: Path) -> Configure:
    """A configuration that lets the lab's pair answer and be judged by the gold reward; keyword arguments change it."""

    def build(**changes: Any) -> RunConfig:
        evaluation: dict[str, Any] = {
            "prompts": str(lab_pair.prompts),
            "sampling": {"max_tokens": 26},
            "candidates": {"base": {"source": str(lab_pair.base)}, "aligned": {"source": str(lab_pair.aligned)}},
            "judges": {"gold": GOLD},
            "num_resamples": 200,
            **changes,
        }
        return RunConfig.model_validate(
            {
                "output_dir": tmp_path / "out",
                "num_threads": 1,
                "models": {
                    "dtype": "float32",
                    "aligned": {"source": str(lab_pair.aligned)},
                    "base": {"source": str(lab_pair.base)},
                },
                "engine": {"kv_memory_bytes": 20_000_000},
                "evaluation": evaluation,
            }
        )

    return build
