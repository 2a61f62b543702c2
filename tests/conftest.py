"""What all tests share: a Ray of their own, for those that need one."""

from .ray_session import pytest_sessionfinish, ray_session

__all__ = ["pytest_sessionfinish", "ray_session"]
