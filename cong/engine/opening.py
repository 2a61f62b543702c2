"""The engine that a configuration asks for, with its networks. Knows which back ends there are, and nothing of them."""

import gc

from cong.config.engine import EngineConfig
from cong.config.models import ModelsConfig
from cong.engine.engine import Engine
from cong.engine.protocol import LocalEngine
from cong.errors import MissingExtra
from cong.models import describe_networks, load_networks


def open_engine(
    models: ModelsConfig, config: EngineConfig, *, writer: str = "", is_for_good: bool = False
) -> LocalEngine:
    """The networks loaded, and the engine around them.

    An engine that stays as long as its process `is_for_good`: Python's collections never again look at what is in
    memory by then, most of it imported code, for whose sake every full one would hold the engine for many steps.
    """
    engine = _open(models, config, writer)
    if is_for_good:
        gc.collect()
        gc.freeze()
    return engine


def _open(models: ModelsConfig, config: EngineConfig, writer: str) -> LocalEngine:
    if config.backend == "cong":
        return Engine(load_networks(models), config, writer=writer)
    try:
        from cong.engine.vllm_backend.engine import VllmEngine
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "vllm":
            raise
        raise MissingExtra("vllm", "vllm") from error
    engine: LocalEngine = VllmEngine(describe_networks(models), config, writer=writer)
    return engine
