"""Log-probabilities of tokens under a network's logits, in at least float32, and what is summed from them.

Position conventions: `logits[:, t]` predicts token t + 1, while every `_BT` result here is aligned with the tokens:
its entry t belongs to token t, and entry 0, which nothing predicts, is 0. Knows neither batches of records nor losses.
Legend: B rows, T positions, N response tokens of a batch in one line, K tokens asked for at each, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Logits are read in blocks of rows, so that no float32 copy of all of them ever exists. On a CPU a block of float32
# fits the cache (measured 2 to 5 times faster than one pass over everything); elsewhere it is large enough to hide
# the launch of its kernels.
_BLOCK_ELEMENTS_CPU = 2**20
_BLOCK_ELEMENTS_OTHER = 2**26


def _blocks(logits_NV: Tensor) -> list[slice]:
    num_elements = _BLOCK_ELEMENTS_CPU if logits_NV.device.type == "cpu" else _BLOCK_ELEMENTS_OTHER
    num_rows = max(1, num_elements // max(1, logits_NV.shape[1]))
    return [slice(start, start + num_rows) for start in range(0, logits_NV.shape[0], num_rows)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Gathered(torch.autograd.Function):
    """Log-softmax and gather whose memory beside the logits and their gradient is one block."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
        dtype = _wide(logits_NV.dtype)
        logprobs_NK = logits_NV.new_empty(ids_NK.shape, dtype=dtype)
        for rows in _blocks(logits_NV):
            logprobs_NK[rows] = torch.log_softmax(logits_NV[rows], -1, dtype=dtype).gather(-1, ids_NK[rows])
        ctx.save_for_backward(logits_NV, ids_NK)
        return logprobs_NK

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, None]:
        # d log p(k) / d z(v) = [v = k] - p(v)
        logits_NV, ids_NK = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for rows in _blocks(logits_NV):
            block_NV = torch.softmax(logits_NV[rows], -1, dtype=grad_NK.dtype)
            block_NV.mul_(-grad_NK[rows].sum(-1, keepdim=True))
            grad_NV[rows] = block_NV.scatter_add_(-1, ids_NK[rows], grad_NK[rows])
        return grad_NV, None


def gather_logprobs(logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Log-probabilities [N, K] of K tokens at each of N positions; float64 only where the logits are."""
    assert logits_NV.shape[0] == ids_NK.shape[0], f"{logits_NV.shape[0]} rows of logits, {ids_NK.shape[0]} of ids"
    gathered: Tensor = _Gathered.apply(logits_NV, ids_NK)  # type: ignore[no-untyped-call]
    return gathered


def token_logprobs(logits_BTV: Tensor, token_ids_BT: Tensor) -> Tensor:
    """Log-probability of every token given those before it, [B, T], aligned with the tokens; entry 0 is 0."""
    # The ids move one to the left instead of the logits one to the right: a slice of the logits would be a copy.
    next_ids_BT = token_ids_BT.roll(-1, dims=1)
    predicted_BT = gather_logprobs(logits_BTV.flatten(0, 1), next_ids_BT.flatten()[:, None]).view(token_ids_BT.shape)
    return torch.nn.functional.pad(predicted_BT[:, :-1], (1, 0))


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum of the masked entries of each row; what lies outside the mask may be anything, infinite too."""
    return torch.where(mask_BT.bool(), values_BT, 0.0).sum(-1)


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of the masked entries of each row; 0 for a row that has none."""
    return masked_sum(values_BT, mask_BT) / mask_BT.bool().sum(-1).clamp(min=1)


def sequence_logprobs(logits_BTV: Tensor, token_ids_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Log-probability [B] of each row's response: the sum over the tokens in the mask."""
    return masked_sum(token_logprobs(logits_BTV, token_ids_BT), response_mask_BT)


@dataclass(frozen=True)
class ImplicitReward:
    """log(p_aligned / p_base) of each response, free of the beta of the weak model's alignment."""

    sum_B: Tensor
    """Grows with length; what a preference loss compares."""
    mean_B: Tensor
    """Per token; what samples are filtered by."""


def implicit_reward(aligned_logprobs_BT: Tensor, base_logprobs_BT: Tensor, response_mask_BT: Tensor) -> ImplicitReward:
    """Implicit reward of each row's response; both log-probabilities and the mask are aligned with the tokens."""
    ratio_BT = aligned_logprobs_BT - base_logprobs_BT
    return ImplicitReward(masked_sum(ratio_BT, response_mask_BT), masked_mean(ratio_BT, response_mask_BT))
