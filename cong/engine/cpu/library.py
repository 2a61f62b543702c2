"""Kernels of our own for the CPU, compiled once on the machine that runs them and loaded.

Needs a C++ compiler; without one, torch alone does the same, slower.
"""

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from cong.config.engine import KernelChoice
from cong.errors import KernelUnavailable

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "kernels"
_MAIN = "operators.cpp"
_DTYPES = (torch.float32, torch.bfloat16)
_COMPILE_LIMIT_S = 300
_FLAGS = (
    *("-std=c++20", "-fPIC", "-O3", "-march=native", "-fopenmp", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)


def has_kernel(choice: KernelChoice, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels are used; compiles and loads them where they are."""
    if choice == "torch" or (choice == "auto" and (device.type != "cpu" or dtype not in _DTYPES)):
        return False
    if device.type != "cpu" or dtype not in _DTYPES:
        raise KernelUnavailable(
            f"engine.kernel is 'compiled', which runs on the CPU in float32 and bfloat16, not on {device} in {dtype}; "
            "set it to auto"
        )
    try:
        load_kernel()
    except KernelUnavailable as error:
        if choice == "compiled":
            raise
        log.warning("the engine runs in torch alone, which is slower: %s", error)
        return False
    return True


@functools.cache
def load_kernel() -> None:
    """Compile the kernels unless this machine has done so before, and load them into torch."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise KernelUnavailable("there is no C++ compiler; install g++, or set engine.kernel to torch")
    library = _cache_dir() / f"{_fingerprint(compiler)}.so"
    try:
        if not library.exists():
            _compile(compiler, library)
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise KernelUnavailable(f"the kernels in {library.parent} cannot be used: {error}") from error


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "cong" / "kernels"


def _fingerprint(compiler: str) -> str:
    """Of everything the compiled code depends on: another processor may lack this one's instructions."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    instructions = next((line for line in lines if line.startswith("flags")), platform.machine())
    sources = (source.read_text() for source in sorted(SOURCES.iterdir()))
    parts = [*sources, *_FLAGS, version, torch.__version__, instructions]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _compile(compiler: str, library: Path) -> None:
    """Make the library beside its place, then rename it, so that processes that start together do not meet."""
    library.parent.mkdir(parents=True, exist_ok=True)
    home = Path(torch.__file__).parent
    log.info("compiling the kernels, once on this machine")
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        # Linked without -fopenmp: the threads are those of the OpenMP that torch has brought along.
        steps = (
            [compiler, *_FLAGS, "-c", f"-I{home / 'include'}", str(SOURCES / _MAIN), "-o", str(made)],
            [compiler, "-shared", str(made), "-o", str(linked), f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu"],
        )
        for step in steps:
            try:
                done = subprocess.run(step, capture_output=True, text=True, timeout=_COMPILE_LIMIT_S)
            except subprocess.TimeoutExpired as error:
                raise KernelUnavailable(f"compiling took more than {_COMPILE_LIMIT_S} s") from error
            if done.returncode:
                raise KernelUnavailable(f"{compiler} failed: {done.stderr[-2000:]}")
        linked.replace(library)
