"""What all tests share: a Ray of their own, for those that need one, Triton's interpreter without a GPU, and Ctrl-C."""

import os
import signal

import torch
from hypothesis import settings

from .ray_session import ray_session

__all__ = ["ray_session"]

settings.register_profile("house", deadline=None)
settings.load_profile("house")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it puts in the background; programs that tests start and stop would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
