"""The engine that a configuration asks for."""

import gc
import importlib.util

import pytest

from cong.config import EngineConfig, ModelsConfig, NetworkConfig
from cong.engine import Engine, open_engine
from cong.errors import ConfigError, MissingExtra
from cong.models import describe_networks, load_networks
from tests.engine.conftest import World


def models(world: World) -> ModelsConfig:
    aligned, base = (NetworkConfig(source=str(world.folder("llama-tied", seed))) for seed in (1, 2))
    return ModelsConfig(aligned=aligned, base=base, dtype="float32")


def test_our_own_engine_is_opened_unless_another_is_asked_for(world: World) -> None:
    engine = open_engine(models(world), EngineConfig(kv_memory_bytes=2**20))
    assert isinstance(engine, Engine)
    assert engine.max_tokens == 160


def test_collections_look_no_more_at_an_engine_for_good(world: World) -> None:
    try:
        engine = open_engine(models(world), EngineConfig(kv_memory_bytes=2**20), is_for_good=True)
        assert gc.get_freeze_count() > 10_000, "all that was imported"
        assert not any(found is engine for found in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(found is engine for found in gc.get_objects())


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_its_back_end_names_the_extra(world: World) -> None:
    with pytest.raises(MissingExtra, match=r"\.\[vllm\]"):
        open_engine(models(world), EngineConfig(backend="vllm"))


def test_networks_are_described_as_they_are_loaded(world: World) -> None:
    described, loaded = describe_networks(models(world)), load_networks(models(world))
    assert described.identities == loaded.identities
    assert (described.shared_vocab_size, described.eos_ids) == (loaded.shared_vocab_size, loaded.eos_ids)
    for here, there in zip(described.networks, loaded.networks, strict=True):
        assert here.architecture == there.architecture
        assert here.num_parameters == there.num_parameters
        assert all(parameter.is_meta for parameter in here.model.parameters())


def test_an_adapter_is_no_whole_network(world: World) -> None:
    source = str(world.folder("llama", 1))
    with pytest.raises(ConfigError, match="merge the adapter"):
        describe_networks(ModelsConfig(aligned=NetworkConfig(source=source, adapter="some/adapter")))
