"""The engine: one token stream per sequence under K frozen networks in lockstep, many sequences at a time."""

from cong.engine.engine import Engine
from cong.engine.opening import open_engine
from cong.engine.protocol import (
    EngineProtocol,
    EngineStats,
    Event,
    Generate,
    LocalEngine,
    Rate,
    Rated,
    SampleFinished,
    TokenDrawn,
    TokenRecord,
)

__all__ = [
    "Engine",
    "EngineProtocol",
    "EngineStats",
    "Event",
    "Generate",
    "LocalEngine",
    "Rate",
    "Rated",
    "SampleFinished",
    "TokenDrawn",
    "TokenRecord",
    "open_engine",
]
