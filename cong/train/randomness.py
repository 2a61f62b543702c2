"""The state of every global generator that training draws from: python's, numpy's, torch's."""

import base64
import json
import random
from typing import Any

import numpy as np
import torch

from cong.errors import CheckpointError


def seed_all(seed: int, rank: int) -> None:
    """Begin every generator of this process from the run's seed and the rank."""
    own = (seed + 1_000_003 * rank) % 2**63
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)


def save_generators(device: torch.device) -> bytes:
    """All states as text: nothing in it can run code."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(place), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _text(torch.cuda.get_rng_state(device))
    return json.dumps(state).encode()


def restore_generators(content: bytes, device: torch.device) -> None:
    """Go on from what `save_generators` wrote."""
    try:
        state = json.loads(content)
        version, words, gauss = state["python"]
        kind, keys, place, has_gauss, cached = state["numpy"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, cached))
        torch.set_rng_state(_tensor(state["torch"]))
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(_tensor(state["cuda"]), device)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the state of the random generators cannot be read: {error}") from error


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
