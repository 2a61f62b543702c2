"""WSPO: token regression on the weak pair's log-ratio. Legend: N response tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.objectives import WSPO, LossShare, PolicyScores, ResponseTokens, combine_metrics, wspo_losses

FROZEN = {
    "reference": torch.tensor([-1.4, -0.6, -1.7]),
    "aligned": torch.tensor([-1.1, -0.7, -2.2]),
    "base": torch.tensor([-1.5, -0.9, -2.0]),
}


def share(objective: WSPO, policy: list[float] | torch.Tensor) -> LossShare:
    ids = torch.arange(3)
    responses = ResponseTokens(ids, ids, (3,), frozen=FROZEN)  # type: ignore[arg-type]
    return objective(PolicyScores(torch.as_tensor(policy)), responses, progress=0.0)


@pytest.mark.parametrize(("gamma", "loss"), [(0.1, 0.064867), (0.5, 0.021667)])
@pytest.mark.parametrize("mean_over", ["tokens", "sequences"])
def test_the_vectors(gamma: float, loss: float, mean_over: str) -> None:
    objective = WSPO(gamma=gamma, mean_over=mean_over)  # type: ignore[arg-type]
    num_units = 3 if mean_over == "tokens" else 1
    assert share(objective, [-1.0, -0.5, -2.0]).loss(num_units).item() == pytest.approx(loss, abs=1e-6)


def test_the_residuals() -> None:
    losses = wspo_losses(torch.tensor([0.4, 0.1, -0.3]), torch.tensor([0.4, 0.2, -0.2]), 0.1)
    assert losses.tolist() == pytest.approx([0.36**2, 0.19**2, 0.17**2], abs=1e-6)


def test_descent_ends_at_the_weak_log_ratio_divided_by_gamma() -> None:
    policy_N = FROZEN["reference"].clone().requires_grad_()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(share(WSPO(gamma=0.1), policy_N).loss(1), policy_N)
        policy_N = (policy_N - 20 * gradient).detach().requires_grad_()
    torch.testing.assert_close(policy_N - FROZEN["reference"], torch.tensor([4.0, 2.0, -2.0]), atol=1e-4, rtol=0)
    assert combine_metrics([share(WSPO(gamma=0.1), policy_N).metrics])["slope"] == pytest.approx(1, abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.floats(-5, 5), st.floats(0.05, 2), st.floats(-3, 3))
def test_the_optimum_is_zero_and_nothing_lies_below(target: float, gamma: float, step: float) -> None:
    target_N = torch.tensor([target], dtype=torch.float64)
    optimum_N = target_N / gamma
    assert wspo_losses(optimum_N, target_N, gamma).item() == pytest.approx(0, abs=1e-20)
    assert wspo_losses(optimum_N + step, target_N, gamma).item() == pytest.approx((gamma * step) ** 2, abs=1e-9)


def test_clipping_bounds_the_target_and_is_counted() -> None:
    clipped = share(WSPO(gamma=0.1, clip=0.3), [-1.0, -0.5, -2.0])
    expected = ((0.04 - 0.3) ** 2 + 0.19**2 + 0.17**2) / 3
    assert clipped.loss(1).item() == pytest.approx(expected, abs=1e-6)
    assert combine_metrics([clipped.metrics])["clip_rate"] == pytest.approx(1 / 3)
    assert combine_metrics([share(WSPO(), [-1.0, -0.5, -2.0]).metrics])["clip_rate"] == 0


def test_clipping_is_symmetric() -> None:
    result = share(WSPO(gamma=0.1, clip=0.15), [-1.0, -0.5, -2.0])
    expected = ((0.04 - 0.15) ** 2 + (0.01 - 0.15) ** 2 + (-0.03 + 0.15) ** 2) / 3
    assert result.loss(1).item() == pytest.approx(expected, abs=1e-6)
    assert combine_metrics([result.metrics])["clip_rate"] == 1


def test_a_wide_clip_changes_nothing() -> None:
    policy = [-1.0, -0.5, -2.0]
    assert share(WSPO(clip=10.0), policy).loss_sum.item() == share(WSPO(), policy).loss_sum.item()


def test_the_slope_is_zero_before_the_first_step() -> None:
    assert combine_metrics([share(WSPO(), FROZEN["reference"]).metrics])["slope"] == 0
