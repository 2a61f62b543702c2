"""The engine that a configuration asks for, with its networks. Knows which back ends there are, and nothing of them."""

from cong.config.engine import EngineConfig
from cong.config.models import ModelsConfig
from cong.engine.engine import Engine
from cong.engine.protocol import LocalEngine
from cong.errors import MissingExtra
from cong.models import describe_networks, load_networks


def open_engine(models: ModelsConfig, config: EngineConfig, *, writer: str = "") -> LocalEngine:
    """The networks loaded, and the engine around them."""
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
