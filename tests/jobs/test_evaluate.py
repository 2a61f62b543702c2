"""`python -m jobs.evaluate`: the files of `cong evaluate`, and exit codes that say what happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cong.evaluation import EvaluationResult
from jobs.evaluate import main
from tests.test_house import ROOT


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.evaluate", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def write_run(folder: Path, function: str = "cong.lab.world:gold_reward") -> str:
    said = {"good": ">abdfg.", "bad": "!dbgaf;ab"}
    (folder / "prompts.jsonl").write_text('{"prompt": "Sdbgaf=", "prompt_id": "p"}\n')
    for name, text in said.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({"prompt_id": "p", "answer": text}) + "\n")
    run = {
        "output_dir": str(folder / "out"),
        "evaluation": {
            "prompts": str(folder / "prompts.jsonl"),
            "candidates": {name: {"answers": str(folder / f"{name}.jsonl")} for name in ("bad", "good")},
            "judges": {"gold": {"kind": "program", "function": function}},
            "num_resamples": 100,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return str(folder / "run.yaml")


def test_the_job_leaves_a_record_and_a_report(tmp_path: Path) -> None:
    done = job("--config", write_run(tmp_path))
    assert done.returncode == 0, done.stderr
    result = EvaluationResult.model_validate_json((tmp_path / "out" / "evaluation.json").read_text())
    (comparison,) = result.comparisons
    assert (comparison.left, comparison.right, comparison.win_rate.mean) == ("good, given", "bad, given", 1.0)
    assert result.sets[1].rewards["gold"].reward.mean == 1.0
    assert (tmp_path / "out" / "report.html").exists()


def test_a_dry_run_plans_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", write_run(tmp_path), "--dry-run"]) == 0
    assert "# candidate good: 1 answers given in" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_wrong_settings_end_in_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", write_run(tmp_path, "os:getenv")]) == 2
    assert capsys.readouterr().err.startswith("jobs.evaluate: judge 'os:getenv' is part of Python itself")
