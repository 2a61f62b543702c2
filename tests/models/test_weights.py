"""Sizes are known from headers before a tensor is read, and what would not fit is refused with the numbers."""

import json
import struct
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cong.errors import ArtefactMissing, NotEnoughMemory
from cong.models import available_memory, estimate_memory, load_network, read_tensors
from cong.models.weights import MemoryEstimate, require_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_estimate_is_what_the_loaded_parameters_take(llama_folder: Path, dtype: torch.dtype, itemsize: int) -> None:
    estimate = estimate_memory(read_tensors([llama_folder / "model.safetensors"]), dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=dtype)
    assert estimate.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert estimate.weights_bytes == estimate.num_parameters * itemsize
    assert estimate.transient_bytes == 300 * 32 * itemsize
    assert estimate.is_converted == (dtype != torch.float32)


def test_integers_keep_their_size(tmp_path: Path) -> None:
    save_file({"codes": torch.zeros(10, dtype=torch.int8), "scale": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert estimate_memory(read_tensors([tmp_path / "x.safetensors"]), torch.bfloat16).weights_bytes == 10 + 3 * 2


def test_a_network_that_does_not_fit_is_refused_before_its_weights_are_read(llama_copy: Path) -> None:
    # A sparse file of 8 TiB.
    num_bytes = 2**43
    entry = {"dtype": "BF16", "shape": [32, num_bytes // 64], "data_offsets": [0, num_bytes]}
    header = json.dumps({"lm_head.weight": entry}).encode()
    path = llama_copy / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + num_bytes)
    with pytest.raises(NotEnoughMemory, match=r"needs 16384\.00 GiB on cpu .* in bfloat16\), and \d+\.\d\d GiB is"):
        load_network(str(llama_copy), role="base", dtype="bfloat16", device="cpu")


def test_the_host_counts_too_where_weights_are_converted_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = MemoryEstimate(num_parameters=10**9, weights_bytes=10, transient_bytes=1, is_converted=True)
    rooms = {"cuda": 100, "cpu": 5}
    monkeypatch.setattr("cong.models.weights.available_memory", lambda device: rooms[device.type])
    with pytest.raises(NotEnoughMemory, match="on cpu"):
        require_memory(estimate, torch.bfloat16, torch.device("cuda"), "it")
    rooms["cpu"] = 10
    require_memory(estimate, torch.bfloat16, torch.device("cuda"), "it")


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_available_memory_is_the_tightest_of_host_and_control_groups(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    _write(proc, meminfo="MemTotal:  9000 kB\nMemAvailable:  1000 kB\nHugePages_Total:  0\n")
    assert available_memory(CPU, proc, groups) == 1000 * 1024
    _write(proc / "self", cgroup="0::/jobs/one\n")
    _write(groups / "jobs" / "one", memory__max="max\n")
    assert available_memory(CPU, proc, groups) == 1000 * 1024
    _write(
        groups / "jobs",
        memory__max="500000\n",
        memory__current="300000\n",
        memory__stat="anon 1\ninactive_file 50000\n",
    )
    assert available_memory(CPU, proc, groups) == 250000
    _write(groups / "jobs" / "one", memory__max="100000\n", memory__current="90000\n")
    assert available_memory(CPU, proc, groups) == 10000


def test_available_memory_reads_the_older_control_groups(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    _write(proc, meminfo="MemAvailable: 1000 kB\n")
    _write(proc / "self", cgroup="5:cpu:/x\n4:memory:/docker/abc\n")
    _write(groups / "memory", memory__limit_in_bytes="4096\n", memory__usage_in_bytes="96\n")
    assert available_memory(CPU, proc, groups) == 4000


def test_available_memory_of_this_machine_is_plausible() -> None:
    assert 0 < available_memory(CPU) < 2**50


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"", "not a whole safetensors file"),
        (b"\x00" * 3, "not a whole safetensors file"),
        (struct.pack("<Q", 10**12) + b"{}", "not a whole safetensors file"),
        (struct.pack("<Q", 2) + b"{]", "damaged safetensors header"),
        (struct.pack("<Q", 2) + b"[]", "damaged safetensors header"),
        (struct.pack("<Q", 10) + b'{"a": {} }', "damaged safetensors header"),
    ],
    ids=["lfs", "empty", "stub", "huge-header", "not-json", "no-object", "no-offsets"],
)
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtefactMissing, match=reason):
        read_tensors([tmp_path / "model.safetensors"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cut=st.integers(0, 400))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    save_file({"w": torch.zeros(64), "b": torch.zeros(3)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(ArtefactMissing):
        read_tensors([path])


def test_a_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ArtefactMissing, match=r"w is in .*a\.safetensors and in"):
        read_tensors(sorted(tmp_path.iterdir()))
