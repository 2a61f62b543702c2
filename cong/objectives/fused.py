"""Log-probabilities of tokens by two compiled functions, for where layers are compiled.

They read the logits and write their gradient, and nothing else of that size. Legend: N response tokens of a batch, K
tokens asked for at each, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cong.objectives.logprobs import gather_logprobs
from cong.objectives.objective import Needs, PolicyScores, policy_scores
from cong.objectives.responses import ResponseTokens

Scorer = Callable[[Tensor, ResponseTokens, Needs], PolicyScores]
"""Scores logits [N, V] at the response tokens."""


def fused_scores(logits_NV: Tensor, responses: ResponseTokens, needs: Needs) -> PolicyScores:
    """What `policy_scores` gives, by functions that are compiled when they are first called."""
    if needs.distribution:
        return policy_scores(logits_NV, responses, needs)
    own_ids_N = [logits_NV.detach().argmax(-1)] if needs.own_prediction else []
    return PolicyScores(*fused_logprobs(logits_NV, torch.stack([responses.token_ids_N, *own_ids_N], -1)).unbind(-1))


def fused_logprobs(logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """What `gather_logprobs` gives, by functions that are compiled when they are first called."""
    if not logits_NV.shape[0]:
        return gather_logprobs(logits_NV, ids_NK)
    gathered: Tensor = _Fused.apply(logits_NV, ids_NK)  # type: ignore[no-untyped-call]
    return gathered


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
        logprobs_NK: Tensor
        logprobs_NK, log_sums_N1 = _compiled(_logprobs_and_sums)(logits_NV, ids_NK)
        ctx.save_for_backward(logits_NV, ids_NK, log_sums_N1)
        return logprobs_NK

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, None]:
        grad_NV: Tensor = _compiled(_gradient)(*ctx.saved_tensors, grad_NK)
        return grad_NV, None


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Not with dynamic=True: that rows differ from batch to batch is noticed, and the vocabulary stays a constant.
    return torch.compile(function)


def _logprobs_and_sums(logits_NV: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    log_sums_N1 = wide_NV.logsumexp(-1, keepdim=True)
    return wide_NV.gather(-1, ids_NK) - log_sums_N1, log_sums_N1


def _gradient(logits_NV: Tensor, ids_NK: Tensor, log_sums_N1: Tensor, grad_NK: Tensor) -> Tensor:
    # With g_k the gradient of log-prob k: g_k at its token, minus the softmax times the sum of all g_k. A comparison
    # with every column, for a scatter would not be fused.
    shares_NV = torch.exp(logits_NV.to(grad_NK.dtype) - log_sums_N1)
    is_chosen_NKV = ids_NK[:, :, None] == torch.arange(logits_NV.shape[1], device=logits_NV.device)
    chosen_NV = torch.where(is_chosen_NKV, grad_NK[:, :, None], 0.0).sum(1)
    return (chosen_NV - shares_NV * grad_NK.sum(-1, keepdim=True)).to(logits_NV.dtype)
