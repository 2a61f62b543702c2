"""The response tokens of a batch in one line: the one form in which every objective sees padded and packed batches.

Prompt and padding are gone, so nothing of them can leak into a mean. Knows where a token's logits lie, whose response
it belongs to and what frozen networks said of it; knows no network, no record and no loss.
Legend: B rows, T positions, N response tokens in row-major order, S responses, V vocabulary, X anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

Unit = Literal["tokens", "sequences", "pairs"]
"""What a loss is a mean over: every response token, every response, or every pair weighs the same."""

TokenUnit = Literal["tokens", "sequences"]
"""The two of them that a loss of tokens can be a mean over."""

FrozenNetwork = Literal["reference", "aligned", "base"]
"""reference = the strong model as training found it; aligned and base = the weak pair."""


@dataclass(frozen=True)
class ResponseTokens:
    """Response tokens of S whole responses; a response is never split between two batches."""

    token_ids_N: Tensor
    positions_N: Tensor
    """Row of the flattened [B * T] logits that predicts the token: the position before it."""
    lengths: tuple[int, ...]
    """Number of tokens of each response, in the order of the tokens."""
    pairs: tuple[tuple[int, int], ...] = ()
    """(chosen, rejected) as places in `lengths`."""
    frozen: Mapping[FrozenNetwork, Tensor] = field(default_factory=dict)
    """Log-probability [N] of each token under a frozen network."""
    weak_logprobs_NV: Tensor | None = None
    """The weak model's whole distribution at each token: its soft labels."""
    pair_weights_P: Tensor | None = None
    """Factor of each pair's loss; None = 1 for all."""

    def __post_init__(self) -> None:
        num_tokens = self.token_ids_N.shape[0]
        assert self.positions_N.shape == (num_tokens,), "one position per token"
        assert sum(self.lengths) == num_tokens, f"lengths add up to {sum(self.lengths)}, tokens are {num_tokens}"
        assert all(0 <= place < len(self.lengths) for pair in self.pairs for place in pair), "a pair of no response"
        for network, logprobs_N in self.frozen.items():
            assert logprobs_N.shape == (num_tokens,), f"{network}: {tuple(logprobs_N.shape)}, tokens are {num_tokens}"
        assert self.weak_logprobs_NV is None or self.weak_logprobs_NV.shape[0] == num_tokens, "one row per token"
        assert self.pair_weights_P is None or self.pair_weights_P.shape == (len(self.pairs),), "one weight per pair"

    def count(self, unit: Unit) -> int:
        """How many units of a mean this batch holds."""
        return {"tokens": sum(self.lengths), "sequences": len(self.lengths), "pairs": len(self.pairs)}[unit]

    def rows(self, values_BTX: Tensor) -> Tensor:
        """The rows [N, X] that predict the response tokens: of logits, or cheaper, of the last hidden states."""
        return values_BTX.flatten(0, 1)[self.positions_N]

    def sequence_sums(self, values_N: Tensor) -> Tensor:
        """Sum over each response, [S]."""
        if not self.lengths:
            return values_N
        # Padded rows sum pairwise and in a fixed order; scattered additions would do neither on an accelerator.
        parts = list(torch.split(values_N, list(self.lengths)))
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).sum(-1)

    def total(self, losses_N: Tensor, unit: TokenUnit) -> Tensor:
        """Sum over units of the losses of tokens; a response counts with the mean over its tokens."""
        if unit == "tokens":
            return losses_N.sum()
        lengths_S = _on(losses_N.device, self.lengths).clamp(min=1)
        return (self.sequence_sums(losses_N) / lengths_S).sum()

    def chosen_and_rejected(self, values_S: Tensor) -> tuple[Tensor, Tensor]:
        """The values [P] of the chosen and of the rejected response of every pair."""
        places_2P = _on(values_S.device, [pair[side] for side in (0, 1) for pair in self.pairs]).view(2, -1)
        return values_S[places_2P[0]], values_S[places_2P[1]]

    def frozen_logprobs(self, network: FrozenNetwork) -> Tensor:
        """Log-probabilities [N] under a frozen network, which must have been given."""
        assert network in self.frozen, f"the objective needs log-probs of {network!r}; given are {sorted(self.frozen)}"
        return self.frozen[network]

    def to(self, device: torch.device | str) -> "ResponseTokens":
        """The same batch on another device."""
        return replace(
            self,
            token_ids_N=self.token_ids_N.to(device, non_blocking=True),
            positions_N=self.positions_N.to(device, non_blocking=True),
            frozen={network: logprobs_N.to(device, non_blocking=True) for network, logprobs_N in self.frozen.items()},
            weak_logprobs_NV=None if self.weak_logprobs_NV is None else self.weak_logprobs_NV.to(device),
            pair_weights_P=None if self.pair_weights_P is None else self.pair_weights_P.to(device),
        )


def _on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Whole numbers on a device, sent without waiting for what it still computes."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def response_tokens(
    token_ids_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    sequence_ids_BT: Tensor | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    frozen: Mapping[FrozenNetwork, Tensor] | None = None,
    weak_logprobs_NV: Tensor | None = None,
) -> ResponseTokens:
    """Take the response tokens out of padded rows (one response each) or out of packed ones.

    Packed rows need `sequence_ids_BT`, which counts the batch's sequences 0, 1, 2, ... in row-major order and is
    ignored outside the mask. `frozen` is given per response token; `logprobs_BT[response_mask_BT]` makes it from a
    tensor that is aligned with the tokens.
    """
    mask_BT = response_mask_BT.bool()
    num_columns = mask_BT.shape[1]
    assert not mask_BT[:, :1].any(), "nothing predicts the first token of a row: it cannot belong to a response"
    if sequence_ids_BT is None:
        lengths_S = mask_BT.sum(-1)
    else:
        sequence_N = sequence_ids_BT[mask_BT]
        assert bool((sequence_N.diff() >= 0).all()), "sequences are numbered in row-major order"
        assert torch.equal(sequence_ids_BT.roll(1, dims=1)[mask_BT], sequence_N), "a response begins its sequence"
        lengths_S = torch.bincount(sequence_N)
    row_N, column_N = mask_BT.nonzero(as_tuple=True)
    return ResponseTokens(
        token_ids_N=token_ids_BT[mask_BT],
        positions_N=row_N * num_columns + column_N - 1,
        lengths=tuple(lengths_S.tolist()),
        pairs=tuple(pairs),
        frozen={} if frozen is None else frozen,
        weak_logprobs_NV=weak_logprobs_NV,
    )
