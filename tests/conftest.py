"""What all tests share: a Ray of their own, for those that need one, and Triton's interpreter without a GPU."""

import os

import torch

from .ray_session import ray_session

__all__ = ["ray_session"]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported
