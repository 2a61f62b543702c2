"""The process group of a training run: joined from the environment, or the one that is there, with limits on waiting.

Knows torch.distributed and the variables that launchers set; neither networks nor DeepSpeed.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from cong.errors import ConfigError

_REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def join_process_group(backend: str, timeout_s: float) -> bool:
    """Join the processes of this run; whether the group is ours to leave, or was there already.

    Without any of a launcher's variables this process is alone. Several processes can join once only: torch does not
    meet again on the same port.
    """
    if dist.is_initialized():
        return False
    timeout = timedelta(seconds=timeout_s)
    missing = [name for name in _REQUIRED if not os.environ.get(name)]
    if len(missing) == len(_REQUIRED) or set(missing) == {"RANK", "WORLD_SIZE"}:
        os.environ.setdefault("LOCAL_RANK", "0")
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return True
    if missing:
        raise ConfigError(f"{', '.join(missing)} not set, but others of {', '.join(_REQUIRED)} are; use a launcher")
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    if not 0 <= rank < world_size:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE is {world_size}; ranks count from 0 below it")
    if not os.environ.get("LOCAL_RANK"):
        if backend != "gloo" and world_size > 1:
            raise ConfigError("LOCAL_RANK is not set; it says which device of its machine each process takes")
        os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)
    return True


def text_from_first(text: str, device: torch.device, group: dist.ProcessGroup) -> str:
    """The text of rank 0, on every rank of a group of all."""
    sent = text.encode() if dist.get_rank() == 0 else b""
    length = torch.tensor([len(sent)], device=device)
    dist.broadcast(length, src=0, group=group)
    content = torch.zeros(int(length.item()), dtype=torch.uint8, device=device)
    if dist.get_rank() == 0:
        content.copy_(torch.tensor(list(sent), dtype=torch.uint8))
    if len(content):
        dist.broadcast(content, src=0, group=group)
    return bytes(content.tolist()).decode()


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError as error:
        raise ConfigError(f"{name} is {os.environ[name]!r}; it must be a whole number") from error
