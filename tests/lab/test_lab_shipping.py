"""Shipped models: a rebuild is compared with what is shipped, and what differs is found."""

from pathlib import Path

import pytest
import torch

from cong.config import RunConfig, load_config
from cong.config.lab import LabConfig
from cong.errors import ConfigError
from cong.lab.bases import SIZES, base_recipe, get_base
from cong.lab.cache import Cache, seal
from cong.lab.networks import load_network, save_network
from cong.lab.shipping import build_shipped, check_shipped

SETTINGS = [
    *[f"lab.{size}.network.{key}=16" for size in SIZES for key in ("hidden_size", "mlp_size")],
    *[f"lab.{size}.pretraining.num_documents=256" for size in SIZES],
    "lab.evaluation.num_prompts=20",
]


@pytest.fixture(scope="module")
def config() -> LabConfig:
    return load_config(RunConfig, overrides=SETTINGS).lab


@pytest.fixture(scope="module")
def shipped(config: LabConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    assert [built.name for built in build_shipped(config, folder)] == ["weak_base", "strong_base"]
    return folder


def test_a_rebuild_on_the_same_machine_is_identical(config: LabConfig, shipped: Path) -> None:
    for comparison in check_shipped(config, shipped):
        assert comparison.problem is None
        assert comparison.is_identical
        assert comparison.is_within_tolerance
        assert comparison.rewards[0] == comparison.rewards[1]


def test_building_again_replaces_what_lies_there(config: LabConfig, shipped: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(shipped.rglob("*")) if path.is_file()}
    list(build_shipped(config, shipped))
    assert {path: path.read_bytes() for path in sorted(shipped.rglob("*")) if path.is_file()} == before


def test_weights_that_were_changed_are_found_even_when_sealed_again(
    config: LabConfig, shipped: Path, tmp_path: Path
) -> None:
    for size in SIZES:
        recipe = base_recipe(config, size)
        network = load_network(shipped / recipe.kind)
        with torch.no_grad():
            network.model.embed_tokens.weight.mul_(3.0)
        save_network(network, tmp_path / recipe.kind)
        seal(tmp_path / recipe.kind, recipe)
    for comparison in check_shipped(config, tmp_path):
        assert comparison.problem is None
        assert not comparison.is_identical
        assert abs(comparison.losses[0] - comparison.losses[1]) > 0.02
        assert not comparison.is_within_tolerance


def test_a_shipped_model_of_another_recipe_is_out_of_tolerance(config: LabConfig, shipped: Path) -> None:
    training = config.weak.pretraining.model_copy(update={"weight_decay": 0.02})
    other = config.model_copy(update={"weak": config.weak.model_copy(update={"pretraining": training})})
    weak = next(check_shipped(other, shipped))
    assert weak.problem is not None
    assert "another recipe" in weak.problem
    assert not weak.is_within_tolerance


def test_only_the_shipped_seed_can_be_built(config: LabConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lab\.seed is 5"):
        list(build_shipped(config.model_copy(update={"seed": 5}), tmp_path))


def test_a_shipped_model_is_used_only_under_its_own_recipe(
    config: LabConfig, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cong.lab.bases.SHIPPED", shipped)
    cache = Cache(tmp_path)
    get_base(config, "weak", cache)
    assert list(tmp_path.iterdir()) == []
    training = config.weak.pretraining.model_copy(update={"weight_decay": 0.02})
    other = config.model_copy(update={"weak": config.weak.model_copy(update={"pretraining": training})})
    get_base(other, "weak", cache)
    assert "another recipe" in caplog.text
    assert [path.name.startswith("weak_base-") for path in tmp_path.iterdir()] == [True]
