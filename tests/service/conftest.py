"""The tiny networks of the engine's tests, and one thread for them."""

from tests.engine.conftest import one_thread, world

__all__ = ["one_thread", "world"]
