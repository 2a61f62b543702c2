"""Starting, waiting and failing: without a launcher or a compiler, with locks left behind, and with ranks gone."""

import json
import re
from pathlib import Path

import pytest

from tests.train.deepspeed.conftest import Results
from tests.train.deepspeed.launch import launch
from tests.train.deepspeed.worlds import settings, tiny_network, train_plainly

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("trouble")
    launch(2, "trouble", str(folder))
    return [json.loads((folder / f"trouble{rank}").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("stage", range(4))
def test_gradients_that_are_not_finite_are_told_and_change_no_weight(
    stage: int, trouble: list[dict[str, object]]
) -> None:
    assert [found[f"zero{stage}"] for found in trouble] == [[False, True], [False, True]]


def test_texts_and_sums_reach_every_rank(trouble: list[dict[str, object]]) -> None:
    for found in trouble:
        assert found["texts"] == [True, True, True]
        assert found["total"] == [3.0, 1.0]


def test_the_number_of_micro_batches_is_not_averaged_over(trouble: list[dict[str, object]]) -> None:
    assert trouble[0]["averaged"] == [2, 2]


def test_no_rank_waits_longer_than_the_limit(tmp_path: Path) -> None:
    launch(2, "vain", str(tmp_path))
    # The other rank stays away until this one has given up.
    assert (tmp_path / "waited").read_text() != "went on"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, str]:
    """A lone process that finds no compiler, an empty folder of extensions, and a lock left in it."""
    folder = tmp_path_factory.mktemp("bare")
    lock = folder / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    variables = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "CXX"), "")
    variables |= {"TORCH_EXTENSIONS_DIR": str(folder / "extensions"), "PATH": str(folder)}
    (output,) = launch(1, "alone", str(folder), variables=variables)
    return Results(folder), output


def test_a_lone_process_trains_without_launcher_and_compiler_and_beside_a_stale_lock(bare: tuple[Results, str]) -> None:
    expected = train_plainly(tiny_network(), settings(0))
    for number in (0, 1):
        found = bare[0].of(f"alone{number}", world_size=1)
        assert found.norms == pytest.approx(expected.norms, rel=1e-5)
        assert all((found.weights[name] - weight).abs().max() < 1e-5 for name, weight in expected.weights.items())


def test_what_cannot_be_started_is_refused_by_name(bare: tuple[Results, str]) -> None:
    refused = re.findall(r"refused: (.*)", bare[1])
    assert len(refused) == 3
    assert "no parameter of the network requires gradients" in refused[0]
    assert "MASTER_PORT not set" in refused[1]
    assert "MASTER_PORT not set" in refused[2]


def test_the_compiled_adam_is_refused_without_a_compiler(tmp_path: Path) -> None:
    variables = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "PATH": str(tmp_path), "CXX": ""}
    (output,) = launch(1, "compiled", str(tmp_path), variables=variables)
    assert re.search(r"refused after \d+ s: DeepSpeed's cpu_adam has to be compiled once", output)


def test_the_compiled_adam_is_made_once_and_computes_the_same(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    extensions = tmp_path_factory.mktemp("extensions")
    quick = extensions / "quick-c++"  # which takes two thirds of the time, and computes the same
    quick.write_text('#!/bin/sh\nexec c++ "$@" -O1 -g0\n')
    quick.chmod(0o755)
    variables = {"TORCH_EXTENSIONS_DIR": str(extensions), "CXX": str(quick)}
    outputs = launch(2, "compiled", str(tmp_path), variables=variables)
    assert sum("compiling DeepSpeed's cpu_adam once" in output for output in outputs) == 1
    expected, found = train_plainly(tiny_network(), settings(0)), Results(tmp_path).of("compiled")
    assert all((found.weights[name] - weight).abs().max() < 1e-5 for name, weight in expected.weights.items())
