"""Divergences to soft labels in both directions. Legend: N examples, V classes, K weak models."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cong.objectives import (
    LossShare,
    ResponseTokens,
    SoftLabels,
    combine_metrics,
    cross_entropy,
    forward_kl,
    policy_scores,
    reverse_kl,
)

seeds = st.integers(0, 2**32 - 1)


def log(probs: list[float]) -> Tensor:
    return torch.tensor([probs], dtype=torch.float64).log()


def distributions(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(6, 9, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    return torch.log_softmax(first, -1), torch.log_softmax(second, -1)


def share(objective: SoftLabels, logits_NV: Tensor, weak_NV: Tensor) -> LossShare:
    ids = torch.zeros(len(logits_NV), dtype=torch.long)
    responses = ResponseTokens(ids, ids, (len(ids),), weak_logprobs_NV=weak_NV)
    return objective(policy_scores(logits_NV, responses, objective.needs), responses, progress=0.0)


def test_both_directions_have_their_vectors() -> None:
    student, weak = log([0.6, 0.3, 0.1]), log([0.5, 0.3, 0.2])
    assert cross_entropy(weak.exp(), student).item() == pytest.approx(1.077122, abs=1e-6)
    assert cross_entropy(student.exp(), weak).item() == pytest.approx(0.938024, abs=1e-6)
    assert forward_kl(student, weak).item() == pytest.approx(0.047469, abs=1e-6)
    assert reverse_kl(student, weak).item() == pytest.approx(0.040078, abs=1e-6)


def test_the_misfit_of_the_projection_has_its_vectors() -> None:
    weak, gold, student = log([0.5, 0.3, 0.2]), log([0.74, 0.155, 0.105]), log([0.582749, 0.168104, 0.249147])
    assert forward_kl(weak, gold).item() == pytest.approx(0.120098, abs=1e-6)
    assert forward_kl(student, gold).item() == pytest.approx(0.073473, abs=1e-6)
    assert reverse_kl(student, weak).item() == pytest.approx(0.046625, abs=1e-6)
    assert forward_kl(student, weak).item() == pytest.approx(0.053240, abs=1e-6)


def test_soft_label_cross_entropy_has_the_vectors_of_the_weak_ensemble() -> None:
    labels_NKV = torch.tensor(
        [[[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], [[0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.2, 0.6, 0.2]]],
        dtype=torch.float64,
    )
    logprobs_NV = torch.log_softmax(torch.tensor([[1.5, 0.2, -0.5], [0, 1, 0.1]], dtype=torch.float64), -1)
    weights_K = torch.full((3,), 1 / 3, dtype=torch.float64, requires_grad=True)
    mixed_NV = torch.einsum("k,nkv->nv", weights_K / weights_K.sum(), labels_NKV)
    loss = cross_entropy(mixed_NV, logprobs_NV).mean()
    assert loss.item() == pytest.approx(1.049450, abs=1e-6)
    of_each = [cross_entropy(labels_NKV[:, k], logprobs_NV).mean().item() for k in range(3)]
    assert of_each == pytest.approx([0.782783, 1.422783, 0.942783], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, weights_K)
    assert gradient.tolist() == pytest.approx([-0.266667, 0.373333, -0.106667], abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_kl_is_positive_and_zero_only_between_equals(seed: int) -> None:
    student, weak = distributions(seed)
    for divergence in (forward_kl, reverse_kl):
        assert bool((divergence(student, weak) > 0).all())
        torch.testing.assert_close(divergence(weak, weak), torch.zeros(6, dtype=torch.float64))


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_cross_entropy_is_kl_plus_an_entropy(seed: int) -> None:
    student, weak = distributions(seed)
    entropy = cross_entropy(weak.exp(), weak)
    torch.testing.assert_close(cross_entropy(weak.exp(), student), forward_kl(student, weak) + entropy)


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_the_gradient_of_forward_kl_is_student_minus_weak(seed: int) -> None:
    logits, weak = (tensor.requires_grad_() for tensor in distributions(seed))
    (gradient,) = torch.autograd.grad(share(SoftLabels(), logits, weak.detach()).loss_sum, logits)
    torch.testing.assert_close(gradient, (logits.softmax(-1) - weak.exp()).detach())


def test_labels_of_probability_zero_cost_nothing_forward_and_the_floor_backward() -> None:
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    weak = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64).log()
    forward = share(SoftLabels(), logits, weak)
    assert forward.loss_sum.item() == pytest.approx(math.log(2))
    reverse = share(SoftLabels(direction="reverse", floor=-10.0), logits, weak)
    assert reverse.loss_sum.item() == pytest.approx(0.5 * math.log(0.25 / 0.5) + 0.5 * (math.log(0.25) + 10))
    assert combine_metrics([reverse.metrics])["floored_mass"] == pytest.approx(0.5)
    for result in (forward, reverse):
        (gradient,) = torch.autograd.grad(result.loss_sum, logits)
        assert bool(gradient.isfinite().all())


def test_a_student_that_excludes_a_token_keeps_a_finite_gradient() -> None:
    logits = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    weak = torch.tensor([[0.5, 0.5, 0.0]]).log()
    for direction in ("forward", "reverse"):
        result = share(SoftLabels(direction=direction), logits, weak)
        (gradient,) = torch.autograd.grad(result.loss_sum, logits)
        assert bool(gradient.isfinite().all())


def test_both_directions_are_reported_whichever_is_trained() -> None:
    student, weak = log([0.6, 0.3, 0.1]), log([0.5, 0.3, 0.2])
    for direction in ("forward", "reverse"):
        result = share(SoftLabels(direction=direction), student, weak)
        metrics = combine_metrics([result.metrics])
        assert metrics["kl_forward"] == pytest.approx(0.047469, abs=1e-6)
        assert metrics["kl_reverse"] == pytest.approx(0.040078, abs=1e-6)
        assert result.loss(1).item() == pytest.approx(metrics[f"kl_{direction}"], abs=1e-6)
        assert metrics["agreement"] == 1
