"""Extensions are compiled once by one process; stale locks, missing compilers and stuck builds end in words."""

import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cong.errors import ConfigError, CongError
from cong.train.deepspeed_backend import build_command
from cong.train.extensions import extensions_folder, free_lock, prepare_extension

MAKE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('compiled'); open(sys.argv[2], 'a').write('x')"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return tmp_path / "extensions"


def command(root: Path, program: str = MAKE) -> list[str]:
    return [sys.executable, "-c", program, str(root / "adam" / "adam.so"), str(root / "builds")]


def test_many_callers_compile_once(root: Path) -> None:
    with ThreadPoolExecutor(4) as callers:
        made = list(callers.map(lambda _: prepare_extension("adam", command(root)), range(4)))
    assert set(made) == {root / "adam" / "adam.so"}
    assert (root / "builds").read_text() == "x"


def test_a_lock_left_behind_is_removed_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = root / "adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))
    with caplog.at_level(logging.WARNING):
        assert prepare_extension("adam", command(root)).exists()
    assert not lock.exists()
    assert f"removing {lock}" in caplog.text


def test_a_young_lock_without_holder_is_waited_for_before_it_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    started = time.monotonic()
    lock.touch()
    free_lock(lock, stale_after_s=1.0, limit_s=60.0)
    assert not lock.exists()
    assert time.monotonic() - started > 0.5


def test_a_lock_that_a_living_process_holds_is_never_removed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        os.utime(lock, (0, 0))
        try:
            with pytest.raises(CongError, match=f"process {holder.pid} holds it"):
                free_lock(lock, stale_after_s=0.0, limit_s=1.0)
            assert lock.exists()
        finally:
            holder.kill()
    free_lock(lock, stale_after_s=0.0, limit_s=60.0)
    assert not lock.exists()


def test_a_lock_that_its_holder_gives_back_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); time.sleep(1); "
        "os.remove(sys.argv[1])"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        free_lock(lock, stale_after_s=60.0, limit_s=60.0)
    assert holder.returncode == 0


@pytest.mark.parametrize("missing", ["c++", "ninja"])
def test_without_a_compiler_nothing_is_begun(
    missing: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"c++", "ninja"} - {missing}:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=rf"{missing.replace('+', '.')} cannot be found on PATH"):
        prepare_extension("adam", command(root))
    assert not (root / "builds").exists()


def test_what_is_compiled_already_needs_no_compiler(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_extension("adam", command(root))
    monkeypatch.setenv("PATH", "")
    assert prepare_extension("adam", command(root)).exists()


def test_a_failed_compilation_shows_the_end_of_its_output(root: Path) -> None:
    failing = command(root, "print('fatal error: immintrin.h'); raise SystemExit(3)")
    with pytest.raises(CongError, match=r"status 3; the end of its output:\nfatal error: immintrin\.h"):
        prepare_extension("adam", failing)


def test_a_stuck_compilation_is_ended(root: Path) -> None:
    with pytest.raises(CongError, match="took longer than 1 s and was ended"):
        prepare_extension("adam", command(root, "import time; time.sleep(60)"), build_limit_s=1.0)


def test_the_default_folder_tells_versions_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    folder = extensions_folder()
    assert folder.is_relative_to(tmp_path)
    assert torch.__version__ in folder.name
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(folder), "torch has to look in the same place"


@pytest.mark.slow
def test_an_unknown_extension_is_refused_by_name() -> None:
    done = subprocess.run(build_command("gpu_magic"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "has no extension 'gpu_magic'" in done.stderr
