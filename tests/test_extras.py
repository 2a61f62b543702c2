"""What is installed decides what runs: an extra is enough for what pages use it for, and what is missing is named."""

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .test_docs import blocks_of
from .test_docs_commands import command_lines
from .test_house import ROOT

_OF_EVERY_ENVIRONMENT = {"pip", "setuptools", "wheel"}

_WITHOUT = """
import importlib.machinery, json, os, pathlib, runpy, sys

pathlib.Path("pid").write_text(str(os.getpid()))
MISSING = set(json.loads(sys.argv.pop(1)))

class Rest(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else super().find_spec(name, path, target)

sys.meta_path = [Rest if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
module, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def _brought_by(extras: list[str]) -> set[str]:
    """The distributions that an installation with some extras brings, and what they ask for themselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    found = set(_OF_EVERY_ENVIRONMENT)
    left = [Requirement(one) for one in listed]
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        if name == "cong":
            left += [Requirement(one) for extra in wanted.extras for one in project["optional-dependencies"][extra]]
            continue
        if name in found or (wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            left += [Requirement(one) for one in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
    return found


def _run(module: str, arguments: list[str], *, extras: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A module's command where nothing can be imported that these extras do not bring."""
    there = _brought_by(extras)
    homes = metadata.packages_distributions()
    missing = [name for name, of in homes.items() if not {canonicalize_name(one) for one in of} & {*there, "cong"}]
    command = [sys.executable, "-c", _WITHOUT, json.dumps(missing), module, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=600,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )


def test_the_extra_that_the_quickstart_installs_is_enough_for_its_commands(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = [line for block in blocks_of(ROOT / "docs/quickstart.md", "console") for line in command_lines(block)]
    assert "pip install -c constraints.txt -e '.[report]'" in lines
    starts = {
        "cong lab export": [],
        "cong pipeline run": [
            "--until=sample",
            "--set=pipeline.align.max_steps=2",
            "--set=pipeline.prompts.max_prompts=16",
            # This home has no compiled kernel, and making one takes longer than all the rest.
            "--set=engine.kernel=torch",
        ],
    }
    for start, small in starts.items():
        line = next(line for line in lines if line.startswith(start))
        arguments = [*line.split()[1:], *small]
        done = _run("cong.cli", arguments, extras=["report"], folder=tmp_path)
        assert done.returncode == 0, f"{line}: {done.stderr}"


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("serve", ["--dry-run"], "serve"),
        ("serve.http", ["--dry-run"], "serve"),
        ("jobs.train", ["--set", "train.network.source=x", "--local"], "train"),
        ("jobs.train", ["--submit", "http://127.0.0.1:1"], "train"),
        ("jobs.demo", [], "dev"),
        (
            "cong.cli",
            ["sample", "--url", "http://127.0.0.1:1", "--prompts", "prompts.txt", "--out", "x.jsonl"],
            "client",
        ),
    ],
)
def test_a_command_whose_packages_are_not_installed_names_the_extra_in_one_line(
    module: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("Sab=\n")
    done = _run(module, arguments, extras=["report"], folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"pip install -c constraints.txt -e '.[{extra}]'" in done.stderr


def test_a_job_that_cannot_start_leaves_no_token_behind(tmp_path: Path) -> None:
    done = _run("jobs.train", ["--set", "train.network.source=x", "--local"], extras=["report"], folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert not list(Path("/tmp").glob(f"cong-ray-{(tmp_path / 'pid').read_text()}-*"))


def test_the_jobs_extra_brings_what_the_sampling_job_asks_with(tmp_path: Path) -> None:
    done = _run("jobs.sample", ["--dry-run"], extras=["train"], folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "sampling_job.prompts.source" in done.stderr.splitlines()[-1]
