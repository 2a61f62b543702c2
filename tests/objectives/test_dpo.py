"""DPO, sigmoid, conservative and confidence-weighted. Legend: P pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.objectives import (
    DPO,
    ConfidenceWeightedDPO,
    LossShare,
    Objective,
    PolicyScores,
    ResponseTokens,
    combine_metrics,
    confidence_weights,
    dpo_gradient_weights,
    dpo_losses,
)

margins = st.floats(-30, 30)
betas = st.floats(0.01, 5)
smoothings = st.floats(0, 0.49)


def share(objective: Objective, policy: list[float], **frozen: list[float]) -> LossShare:
    """One pair of one-token responses, given by their log-probs."""
    ids = torch.tensor([0, 1])
    responses = ResponseTokens(
        ids,
        ids,
        (1, 1),
        ((0, 1),),
        {name: torch.tensor(values) for name, values in frozen.items()},  # type: ignore[misc]
    )
    return objective(PolicyScores(torch.tensor(policy)), responses, progress=0.5)


@pytest.mark.parametrize(("beta", "loss", "weight"), [(0.5, 0.126928, 0.059601), (0.1, 0.513015, 0.040131)])
def test_the_worked_example_has_its_loss_and_gradient_weight(beta: float, loss: float, weight: float) -> None:
    result = share(DPO(beta=beta), policy=[-42, -55], reference=[-45, -54])
    metrics = combine_metrics([result.metrics])
    assert result.loss(1).item() == pytest.approx(loss, abs=1e-6)
    assert metrics["gradient_weight"] == pytest.approx(weight, abs=1e-6)
    assert metrics["reward_margin"] == pytest.approx(4 * beta)
    assert metrics["reward_chosen"] == pytest.approx(3 * beta)
    assert metrics["reward_rejected"] == pytest.approx(-1 * beta)
    assert metrics["accuracy"] == 1


def test_conservative_dpo_has_its_vector() -> None:
    assert dpo_losses(torch.tensor([0.4]), 5, 0.1).item() == pytest.approx(0.326928, abs=1e-6)
    result = share(DPO(beta=5, label_smoothing=0.1), policy=[-1, -1.4], reference=[-2, -2])
    assert result.loss(1).item() == pytest.approx(0.326928, abs=1e-6)


@pytest.mark.parametrize(("margin", "weight"), [(0.8, 0.379949), (3, 0.905148), (0, 0)])
def test_confidence_weights_have_their_vectors(margin: float, weight: float) -> None:
    assert confidence_weights(torch.tensor([margin])).item() == pytest.approx(weight, abs=1e-6)


def test_a_pair_weighs_as_much_as_the_weak_pair_is_sure() -> None:
    objective = ConfidenceWeightedDPO(beta=0.5, weak_beta=0.5)
    plain = share(DPO(beta=0.5), policy=[-42, -55], reference=[-45, -54])
    result = share(objective, [-42, -55], reference=[-45, -54], aligned=[-3, -8], base=[-6, -5])
    assert result.loss_sum.item() == pytest.approx(0.905148 * plain.loss_sum.item(), abs=1e-6)
    assert combine_metrics([result.metrics])["confidence"] == pytest.approx(0.905148, abs=1e-6)


def test_a_pair_the_weak_pair_orders_otherwise_weighs_nothing_and_is_counted() -> None:
    result = share(ConfidenceWeightedDPO(), [-4, -5], reference=[-4, -5], aligned=[-9, -3], base=[-5, -5])
    metrics = combine_metrics([result.metrics])
    assert result.loss_sum.item() == 0
    assert metrics["weak_disagreement"] == 1
    assert metrics["gradient_weight"] == 0


@settings(deadline=None, max_examples=100)
@given(margins, betas, smoothings)
def test_the_gradient_is_the_closed_form(margin: float, beta: float, smoothing: float) -> None:
    margin_P = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dpo_losses(margin_P, beta, smoothing).sum(), margin_P)
    expected = -beta * (1 / (1 + math.exp(beta * margin)) - smoothing)
    assert gradient.item() == pytest.approx(expected, abs=1e-12)
    assert -dpo_gradient_weights(margin_P.detach(), beta, smoothing).item() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(margins, betas, st.floats(0.01, 0.49))
def test_conservative_dpo_rests_where_the_pair_is_as_sure_as_its_label(
    margin: float, beta: float, smoothing: float
) -> None:
    optimum = math.log((1 - smoothing) / smoothing) / beta
    at_optimum, elsewhere = dpo_losses(torch.tensor([optimum, margin], dtype=torch.float64), beta, smoothing).tolist()
    assert at_optimum <= elsewhere + 1e-12


@settings(deadline=None, max_examples=50)
@given(margins, betas, smoothings)
def test_no_smoothing_is_plain_and_swapping_a_pair_swaps_the_labels(margin: float, beta: float, eps: float) -> None:
    margin_P = torch.tensor([margin], dtype=torch.float64)
    plain, swapped = dpo_losses(margin_P, beta), dpo_losses(-margin_P, beta)
    torch.testing.assert_close(dpo_losses(margin_P, beta, eps), (1 - eps) * plain + eps * swapped)


def test_a_policy_that_is_its_reference_loses_log_two() -> None:
    result = share(DPO(), policy=[-3, -9], reference=[-3, -9])
    assert result.loss(1).item() == pytest.approx(math.log(2))
    assert combine_metrics([result.metrics])["accuracy"] == 0
