"""What all tests share: a Ray of their own, for those that need one."""

from .ray_session import ray_session

__all__ = ["ray_session"]
