"""The compiler for images asks for no particular processor, and leaves everything else as it is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "deploy" / "portable-cxx"


@pytest.fixture
def called(tmp_path: Path) -> dict[str, str]:
    """An environment whose g++ says what it was asked for."""
    fake = tmp_path / "g++"
    fake.write_text('#!/bin/sh\nfor argument in "$@"; do echo "[$argument]"; done\nexit 3\n')
    fake.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_the_processor_of_the_builder_is_replaced(called: dict[str, str]) -> None:
    given = ["-O3", "-march=native", "-D__AVX512__", "-DTEXT=two words", "-c", "a b.cpp", ""]
    done = subprocess.run([SCRIPT, *given], env=called, capture_output=True, text=True, timeout=30, check=False)
    wanted = ["-O3", "-march=x86-64-v3", "-D__AVX256__", "-DTEXT=two words", "-c", "a b.cpp", ""]
    assert done.stdout.splitlines() == [f"[{argument}]" for argument in wanted]
    assert done.returncode == 3, "the compiler's exit code is the script's"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_what_it_compiles_runs(tmp_path: Path) -> None:
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text("#ifdef __AVX512F__\n#error of this machine only\n#endif\nint main() { return 7; }\n")
    subprocess.run([SCRIPT, "-march=native", source, "-o", program], check=True, timeout=60)
    assert subprocess.run([program], timeout=30, check=False).returncode == 7
