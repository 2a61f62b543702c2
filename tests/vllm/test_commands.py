"""The command line with vLLM as its back end: what it leaves is what our engine leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.conftest import VllmWorld

PROMPTS = ("hello", "abc", "The end.")
SETTINGS = {
    "models.dtype": "float32",
    "engine.kv_memory_bytes": 4194304,
    "engine.vllm.is_eager": "true",
    "engine.vllm.block_size": 32,
    "sampling.max_tokens": 12,
    "sampling.seed": 5,
}


def run(command: str, *arguments: str, **settings: object) -> None:
    """A command in a process of its own: it closes its engines, and what vLLMs of one process share goes with them."""
    given = {**SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}}
    options = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    line = [sys.executable, "-m", "cong.cli", command, *arguments, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": text, "prompt_id": f"p{number}"} for number, text in enumerate(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_cong_sample_makes_the_samples_of_our_engine(world: VllmWorld, prompts: str, tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    for backend in ("cong", "vllm"):
        out = tmp_path / f"{backend}.jsonl"
        pair = {f"models__{role}__source": world.folder("llama", seed) for role, seed in (("aligned", 1), ("base", 2))}
        run("sample", "--prompts", prompts, "--out", str(out), "--num-samples", "2", engine__backend=backend, **pair)
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert {record["software"]["engine"] for record in records} == {backend}
        found.append({record["key"]: record["completion_token_ids"] for record in records})
    ours, theirs = found
    assert len(ours) == 2 * len(PROMPTS)
    assert theirs == ours
