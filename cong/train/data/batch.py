"""Examples, and the micro-batches that networks read: packed rows or padded ones, with the response tokens named.

Knows no records, no files and no network. Legend: B rows, T positions, N response tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cong.objectives import FrozenNetwork, ResponseTokens
from cong.train.data.packing import PackedLayout, lay_out

TokenIds = npt.NDArray[np.int32]
LogProbs = npt.NDArray[np.float32]

PADDING_ID = 0
"""Nothing reads it: it lies behind all that is read, or in a batch without responses."""


@dataclass(frozen=True, eq=False)
class Example:
    """A prompt with one response to imitate, or with a chosen and a rejected one."""

    key: str
    """Identity of what is trained on, for the ledger."""
    prompt_id: str
    prompt_ids: TokenIds
    responses: tuple[TokenIds, ...]
    frozen: Mapping[FrozenNetwork, tuple[LogProbs, ...]] = field(default_factory=dict)
    """Log-probability of every token of each response under frozen networks."""
    weight: float = 1.0
    """Factor of a pair's loss."""
    is_cut_off: bool = False
    """Its response has no end because the sampler had no room: it does not teach how to end."""

    @property
    def num_tokens(self) -> int:
        """Tokens that a network reads: the prompt once for each response."""
        return sum(len(self.prompt_ids) + len(response) for response in self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longest response."""
        return len(self.prompt_ids) + max(len(response) for response in self.responses)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward pass of one process reads."""

    token_ids_BT: Tensor
    position_ids_BT: Tensor
    layout: PackedLayout | None
    """Where sequences lie in the one packed row; None: one sequence to a row, padded on the right."""
    responses: ResponseTokens
    num_tokens: int
    """Without padding; 0 = this batch is there only because other ranks have one."""
    origins: tuple[tuple[int, int], ...] = ()
    """Of each response: which of the examples, and which side of it."""

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same batch on another device."""
        return replace(
            self,
            token_ids_BT=self.token_ids_BT.to(device, non_blocking=True),
            position_ids_BT=self.position_ids_BT.to(device, non_blocking=True),
            layout=None if self.layout is None else self.layout.to(device),
            responses=self.responses.to(device),
        )


@dataclass(frozen=True)
class _Row:
    """One sequence on its way into a batch."""

    example: int
    side: int
    prompt_ids: TokenIds
    response: TokenIds

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response)


def make_batch(examples: Sequence[Example], frozen: Sequence[FrozenNetwork] = (), *, is_packed: bool) -> MicroBatch:
    """The micro-batch of some examples, or an empty one; `frozen` names the log-probs that are taken along.

    Nothing in the batch says which way it was made: the same objective reads packed and padded ones.
    """
    rows = [
        _Row(number, side, example.prompt_ids, response)
        for number, example in enumerate(examples)
        for side, response in enumerate(example.responses)
    ]
    if not rows:
        return _empty(frozen, is_packed=is_packed)
    # Longest first: neighbours of similar length are computed together.
    rows.sort(key=len, reverse=True)
    place_of = {(row.example, row.side): place for place, row in enumerate(rows)}
    pairs = tuple(
        (place_of[number, 0], place_of[number, 1])
        for number, example in enumerate(examples)
        if len(example.responses) == 2
    )
    lengths = [len(row) for row in rows]
    width = sum(lengths) if is_packed else max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if is_packed else np.arange(len(rows)) * width
    tokens = np.full(width if is_packed else width * len(rows), PADDING_ID, dtype=np.int64)
    positions = np.zeros(len(tokens), dtype=np.int64) if is_packed else np.tile(np.arange(width), len(rows))
    for row, start in zip(rows, starts, strict=True):
        middle, stop = start + len(row.prompt_ids), start + len(row)
        tokens[start:middle], tokens[middle:stop] = row.prompt_ids, row.response
        if is_packed:
            positions[start:stop] = np.arange(len(row))
    responses = ResponseTokens(
        token_ids_N=torch.from_numpy(np.concatenate([row.response for row in rows]).astype(np.int64)),
        positions_N=torch.from_numpy(
            np.concatenate(
                [
                    np.arange(start + len(row.prompt_ids) - 1, start + len(row) - 1)
                    for row, start in zip(rows, starts, strict=True)
                ]
            )
        ),
        lengths=tuple(len(row.response) for row in rows),
        pairs=pairs,
        frozen={
            name: torch.from_numpy(
                np.concatenate([examples[row.example].frozen[name][row.side] for row in rows]).astype(np.float32)
            )
            for name in frozen
        },
        pair_weights_P=_pair_weights(examples),
    )
    shape = (1, width) if is_packed else (len(rows), width)
    return MicroBatch(
        token_ids_BT=torch.from_numpy(tokens).view(shape),
        position_ids_BT=torch.from_numpy(positions).view(shape),
        layout=lay_out(lengths) if is_packed else None,
        responses=responses,
        num_tokens=sum(lengths),
        origins=tuple((row.example, row.side) for row in rows),
    )


def _pair_weights(examples: Sequence[Example]) -> Tensor | None:
    weights = [example.weight for example in examples if len(example.responses) == 2]
    return torch.tensor(weights) if any(weight != 1.0 for weight in weights) else None


def _empty(frozen: Sequence[FrozenNetwork], *, is_packed: bool) -> MicroBatch:
    """One token that nobody asks about: every layer runs, and the loss is a sum over nothing."""
    none = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        token_ids_BT=torch.full((1, 1), PADDING_ID),
        position_ids_BT=torch.zeros(1, 1, dtype=torch.int64),
        layout=lay_out([1]) if is_packed else None,
        responses=ResponseTokens(none, none, (), frozen={name: torch.zeros(0) for name in frozen}),
        num_tokens=0,
    )
