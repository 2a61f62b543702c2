"""Identities that methods built on these losses rely on, checked on random distributions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cong.objectives import cross_entropy, gather_logprobs, kl

seeds = st.integers(0, 2**32 - 1)


def distributions(generator: torch.Generator, *shape: int) -> Tensor:
    logits = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.softmax(logits, -1)


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_weights_of_several_weak_models_flow_to_whom_the_student_agrees_with(seed: int) -> None:
    """With the mixed label renormalised, dL/dw_k = CE_k - L at weights that sum to 1 (RAVEN, 2510.21332)."""
    generator = torch.Generator().manual_seed(seed)
    labels_KBV = distributions(generator, 3, 4, 5)
    student_BV = distributions(generator, 4, 5).log()
    weights_K = distributions(generator, 3).requires_grad_()
    mixed_BV = torch.einsum("k,kbv->bv", weights_K, labels_KBV) / weights_K.sum()
    loss = cross_entropy(mixed_BV, student_BV).mean()
    (gradient_K,) = torch.autograd.grad(loss, weights_K)
    each_K = torch.stack([cross_entropy(labels_BV, student_BV).mean() for labels_BV in labels_KBV])
    torch.testing.assert_close(gradient_K, each_K - loss.detach())


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_the_gain_of_a_projection_is_its_misfit(seed: int) -> None:
    """KL(g||w) = KL(g||q*) + KL(q*||w) for the q* of a segment through g that is nearest to w (2501.19105)."""
    generator = torch.Generator().manual_seed(seed)
    start_V, end_V, weak_V = distributions(generator, 3, 4)
    gold_V = 0.7 * start_V + 0.3 * end_V

    def point(t: float) -> Tensor:
        return torch.lerp(end_V, start_V, t)

    def misfit(t: float) -> float:
        return kl(point(t).log(), weak_V.log()).item()

    low, high = 0.0, 1.0
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if misfit(left) > misfit(right) else (low, right)
    nearest = (low + high) / 2
    if not 1e-3 < nearest < 1 - 1e-3:
        return  # at an end of the segment only the inequality holds
    nearest_V = point(nearest)
    total = kl(gold_V.log(), weak_V.log())
    parts = kl(gold_V.log(), nearest_V.log()) + kl(nearest_V.log(), weak_V.log())
    torch.testing.assert_close(total, parts, atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_logprobs_taken_beforehand_equal_those_taken_in_the_loop(seed: int) -> None:
    """A bfloat16 head, in one pass over all rows or in batches: 1e-4 apart at most, for the softmax is in float32."""
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(48, 32, generator=generator).bfloat16()
    head_DV = (torch.randn(32, 200, generator=generator) / 4).bfloat16()
    ids_N1 = torch.randint(200, (48, 1), generator=generator)
    beforehand = gather_logprobs(hidden_ND @ head_DV, ids_N1)
    batches = zip(torch.split(hidden_ND, 8), torch.split(ids_N1, 8), strict=True)
    in_loop = [gather_logprobs(rows @ head_DV, ids) for rows, ids in batches]
    assert beforehand.dtype == torch.float32
    torch.testing.assert_close(beforehand, torch.cat(in_loop), atol=1e-4, rtol=0)
