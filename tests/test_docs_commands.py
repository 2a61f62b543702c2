"""Every command that README and documentation show is executed here, executed by another test, or says why it is not.

Each page is worked through from top to bottom in a folder of its own: its Python runs, its files are written, its
commands are typed, some of them in small.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from cong.cli import main

from .test_docs import NEED_A_SERVICE, PAGES, README, Block, blocks_of, leave_what_the_demo_leaves, split
from .test_house import ROOT

ELSEWHERE = {
    # The beginning of a command -> the test that executes it, or the file that does whenever the tests run.
    "python3 -m venv": "Makefile",
    ". .venv/bin/activate": "Makefile",
    "pip install -c constraints.txt -e": "Makefile",
    "export PIP_EXTRA_INDEX_URL": "Makefile",
    "make check": ".ci/run",
    "make test": ".ci/run",
    "make serve": "tests/serve/test_command.py::test_it_serves_until_ctrl_c_and_leaves_nothing_behind",
    "make demo": "tests/jobs/test_demo.py::test_stopped_and_run_again_it_ends_with_a_report_and_leaves_nothing_running",
    "curl -s http://127.0.0.1:8000/sample": "tests/serve/http/test_api_docs.py::"
    "test_every_request_is_answered_as_shown",
    ".venv-vllm/bin/pip install": "Makefile",
    "export VLLM_USE_V2_MODEL_RUNNER": "Makefile",
    "python -m serve --config serve/config-vllm.yaml --dry-run": "tests/serve/test_command.py::"
    "test_a_dry_run_shows_what_it_resolves_to",
    "cong lab demo": "tests/lab/test_lab_commands.py::test_demo_says_where_everything_lies",
    "cong lab sample": "tests/lab/test_lab_commands.py::test_sample_shows_the_pair_side_by_side",
    "cong lab experiment --config configs/lab.yaml": "tests/lab/test_lab_commands.py::"
    "test_experiment_writes_results_page_and_report_and_continues_from_what_is_done",
    "cong cluster check cluster.yaml": "tests/cluster/test_cluster_command.py::"
    "test_what_is_still_to_be_filled_in_is_listed",
    "cong evaluate --config evaluation.yaml": "tests/evaluation/test_evaluate.py::"
    "test_the_aligned_model_is_better_than_its_base_and_everything_is_reported",
    "cong train --config run.yaml": "tests/train/test_train_command.py::test_a_run_leaves_its_folder",
    "cong sample --url": "tests/client/test_sample_command.py::test_a_second_run_asks_only_for_what_is_missing",
    "cong stream ls STREAM": "tests/stream/test_commands.py::test_ls_shows_writers_sizes_and_state",
    "cong stream tail STREAM": "tests/stream/test_commands.py::test_tail_shows_the_last_records_of_each_writer",
    "cong stream show STREAM": "tests/stream/test_commands.py::test_show_prints_one_record_by_its_key",
    "cong stream verify STREAM": "tests/stream/test_commands.py::test_mistakes_are_told_in_one_line",
    "cong stream compact STREAM": "tests/stream/test_commands.py::test_compact_says_what_it_would_do_and_does_it",
    "cong stream stats STREAM": "tests/stream/test_commands.py::test_stats_agree_with_the_records_and_are_drawn",
    "cong stream export STREAM": "tests/stream/test_commands.py::test_every_container_holds_the_same_rows",
    "cong stream retain STREAM": "tests/train/test_retention.py::test_retention_spares_what_kept_checkpoints_may_read",
    "cong pipeline plan --config run.yaml": "tests/pipeline/test_parts.py::"
    "test_the_plan_of_a_finished_pipeline_is_to_do_nothing",
    "cong pipeline status --config run.yaml": "tests/pipeline/test_parts.py::test_status_shows_how_far_a_stage_is",
    "cong pipeline prune --config run.yaml": "tests/pipeline/test_prune.py::"
    "test_a_former_recipe_s_folders_go_and_the_present_one_s_stay",
    "cong cluster check --template cluster.yaml serve/config.yaml": "tests/cluster/test_placement.py::"
    "test_the_command_looks_at_its_files_together",
    "cong pipeline plan --config configs/lab-pipeline.yaml": "docs/quickstart.md",
    "cong pipeline run --config configs/lab-pipeline.yaml": "docs/quickstart.md",
    "python -m jobs.sample --config run.yaml --dry-run": "tests/jobs/test_sample.py::"
    "test_a_dry_run_says_what_would_be_done_and_does_nothing",
    "python -m jobs.sample --config run.yaml": "tests/jobs/test_sample.py::"
    "test_every_prompt_gets_its_samples_and_a_second_run_asks_for_nothing",
    "python -m jobs.train --config run.yaml --dry-run": "tests/jobs/test_train_plan.py::"
    "test_a_dry_run_shows_where_everything_will_lie",
    "python -m jobs.train --config run.yaml --local": "tests/jobs/test_train_job.py::"
    "test_a_killed_driver_is_followed_by_another_whatever_it_has_left",
    "python -m jobs.train --config run.yaml --submit": "tests/jobs/test_submitted_jobs.py::"
    "test_a_submitted_run_runs_once_saves_when_stopped_and_goes_on_with_fewer_workers",
    "python -m serve --config serve/config.yaml --dry-run": "tests/serve/test_command.py::"
    "test_a_dry_run_shows_what_it_resolves_to",
    "python -m bench.scale": "tests/bench/test_scale.py::test_it_runs_in_small",
    "TORCH_EXTENSIONS_DIR=/opt/extensions python -m cong.train.deepspeed_backend": "tests/train/deepspeed/"
    "test_extensions.py::test_many_callers_compile_once",
}

IN_SMALL = {
    # The beginning of a command -> settings that make it quick, and change nothing of what it shows.
    "cong lab export": [
        "lab.num_training_prompts=32",
        "lab.alignment.num_pairs=64",
        "lab.evaluation.num_prompts=12",
    ],
    "cong pipeline": [
        "pipeline.align.max_steps=2",
        "pipeline.prefer.max_steps=2",
        "pipeline.alphas=[0.0, 1.0]",
        "train.precision=float32",
        "engine.kernel=torch",
        "evaluation.num_resamples=100",
    ],
}
AS_SHIPPED = re.compile(r"--config configs/[^/]+/")
"""Dry runs of real pairs are quick as they stand."""

PLAIN = {"echo", "head", "mkdir", "cp", "ls"}
"""Programs that are simply called."""

NOT_RUN = re.compile(r"# not run: \S")
ASSIGNMENT = re.compile(r"([A-Z]+)=(?:\$\(.*\)|\S+)$")
NAMED = re.compile(r"# ([\w-]+\.yaml)$")
"""The first line of a file that a page writes."""

READY_S = 240.0


def command_lines(block: Block) -> Iterator[str]:
    """Commands of a block, continued lines joined, those left out that say why they are not run."""
    text = block.text.replace("\\\n", " ")
    if any(NOT_RUN.match(line) for line in text.splitlines()):
        return
    for line in text.splitlines():
        command = line.removeprefix("$ ")
        if (block.language == "console" and command == line) or NOT_RUN.search(line):
            continue
        yield re.sub(r"\s+#\s.*", "", re.sub(r"\s+", " ", command)).strip()


def executed_by(command: str) -> str | None:
    """Where else a command is executed."""
    return next((where for start, where in ELSEWHERE.items() if command.startswith(start)), None)


class Shell:
    """Whoever types the commands of a page."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._variables = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        self._running: list[subprocess.Popen[bytes]] = []

    def type(self, command: str) -> None:
        """Execute a command, which has to succeed."""
        if found := ASSIGNMENT.match(command):
            (value,) = self._words(command.partition("=")[2])
            self._variables[found[1]] = value
            return
        if shlex.split(command)[0] in PLAIN:
            subprocess.run(["bash", "-c", command], cwd=self._folder, env=self._variables, check=True, timeout=60)
            return
        words = self._words(command)
        if words[0] == "cong":
            small = next((given for start, given in IN_SMALL.items() if command.startswith(start)), [])
            if AS_SHIPPED.search(command):
                small = []
            assert main([*words[1:], *(f"--set={one}" for one in small)]) == 0, command
        elif words[:3] == ["python", "-m", "serve.http"]:
            self._serve(words)
        else:
            pytest.fail(f"{command!r} is neither run, nor run by another test, nor marked with a reason")

    def _words(self, command: str) -> list[str]:
        """As a shell sees them, variables and patterns filled in."""
        script = f"set -euo pipefail; printf '%s\\0' {command}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self._folder, env=self._variables, check=True, capture_output=True, timeout=60
        )
        return done.stdout.decode().split("\0")[:-1]

    def _serve(self, words: list[str]) -> None:
        (port,) = re.findall(r"service\.port=(\d+)", " ".join(words))
        variables = self._variables | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, *words[1:]], cwd=self._folder, env=variables)
        self._running.append(process)
        until_s = time.monotonic() + READY_S
        while time.monotonic() < until_s and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        pytest.fail(f"{shlex.join(words)} does not answer")

    def leave(self) -> None:
        """End what still runs."""
        for process in self._running:
            process.terminate()
            process.wait(timeout=120)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """In a folder that looks like a checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("configs", "deploy", "serve", "cluster.yaml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    num_threads = torch.get_num_threads()
    made = Shell(tmp_path)
    yield made
    made.leave()
    torch.set_num_threads(num_threads)


LANGUAGES = ("python", "yaml", "console", "bash", "sh")
WORKED_THROUGH = [path for path in PAGES if blocks_of(path, *LANGUAGES)]


@pytest.mark.parametrize("path", WORKED_THROUGH, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_can_be_worked_through(path: Path, shell: Shell, tmp_path: Path) -> None:
    if path == README:
        leave_what_the_demo_leaves(tmp_path)
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in split(path)[0]:
        if block.language == "python" and path not in NEED_A_SERVICE:
            # Lines are counted as in the page, so that a traceback points into it.
            exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), namespace)
        elif block.language == "yaml" and (name := NAMED.match(block.text.splitlines()[0])):
            (tmp_path / name[1]).write_text(block.text)
        elif block.language in ("console", "bash", "sh"):
            for command in command_lines(block):
                if executed_by(command) is None or executed_by(command) == path.relative_to(ROOT).as_posix():
                    shell.type(command)


def test_the_readme_s_example_samples_the_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    leave_what_the_demo_leaves(tmp_path)
    (example,) = blocks_of(README, "python")
    exec(compile(example.text, str(README), "exec"), {"__name__": "example"})
    assert len(capsys.readouterr().out.splitlines()) == int(re.findall(r"num_samples=(\d+)", example.text)[0])


def test_what_is_run_elsewhere_is_there_and_still_shown() -> None:
    shown = [
        command
        for path in PAGES
        for block in blocks_of(path, "console", "bash", "sh")
        for command in command_lines(block)
    ]
    for start, where in ELSEWHERE.items():
        assert any(command.startswith(start) for command in shown), f"no page shows {start!r} any more"
        file, _, name = where.partition("::")
        assert (ROOT / file).exists(), where
        if name:
            assert f"def {name}(" in (ROOT / file).read_text(), where


def test_a_command_without_a_test_or_a_reason_is_noticed(shell: Shell, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ rm -r nothing\n$ cong nosuch  # not run: an example\n```\n"
        "```console\n# not run: needs a cloud\n$ ray up x.yaml\n```\n"
    )
    (block, other) = blocks_of(page, "console")
    assert list(command_lines(other)) == []
    (command,) = command_lines(block)
    with pytest.raises(pytest.fail.Exception, match="neither run, nor run by another test, nor marked"):
        shell.type(command)


def test_variables_and_patterns_are_filled_in(shell: Shell, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "found.txt").touch()
    shell.type("HERE=$(ls -d f*.txt)")
    shell.type("echo $HERE f*.txt")
    assert capfd.readouterr().out == "found.txt found.txt\n"
