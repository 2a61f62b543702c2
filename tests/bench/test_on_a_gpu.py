"""What is run where a GPU is lent for minutes has been tried before: in small, on a CPU, to the file that it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..test_house import ROOT


def _run(tmp_path: Path, *arguments: str) -> Any:
    file = tmp_path / "results.json"
    command = [sys.executable, *arguments, "--device", "cpu", "--shapes", "tiny", "--json", str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_the_engine_is_measured_with_parts_turned_off_and_beside_a_peer(tmp_path: Path) -> None:
    sizes = ["--sequences", "1", "4", "--prompt-tokens", "24", "--new-tokens", "4"]
    found = _run(tmp_path, "bench/engine_gpu.py", *sizes, "--variants", "tiny", "--peers", "tiny")
    rows = [row for row in found["results"] if "variant" in row]
    assert [row["num_sequences"] for row in rows if row["variant"] == "cong"] == [1, 4]
    others = [row["variant"] for row in rows if row["variant"] != "cong"]
    assert "torch's own operators" in others
    assert others[-1] == "transformers continuous batching, ONE network"
    assert len(others) == len(set(others)) == 7
    assert all(row["decode_tokens_per_s"] > 0 for row in rows)
    (near,) = [row["nearness"] for row in found["results"] if "nearness" in row]
    assert near["max"] < 0.2


def test_training_is_measured_beside_its_peer_and_its_bound(tmp_path: Path) -> None:
    found = _run(tmp_path, "bench/train_gpu.py", "--row-seconds", "0.1", "--median-tokens", "16", "--rows", "SFT")
    rows = found["rows"]
    assert len(rows) == 4
    assert {name: row for name, row in rows.items() if "reason" in row} == {}
