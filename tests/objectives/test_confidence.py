"""Auxiliary and adaptive confidence on tokens. Legend: N response tokens, V vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cong.objectives import (
    AdaptConf,
    AuxConf,
    AuxConfReleased,
    LossShare,
    Objective,
    ResponseTokens,
    adaptive_coefficients,
    combine_metrics,
    confidence_losses,
    linear_ramp,
    policy_scores,
    released_ramp,
)

LOGITS = [1.2, 2.0, -0.3, 0.1]
WEAK_TOKEN = 0
shares = st.floats(0, 1)


def share(objective: Objective, logits: Tensor, token_ids: list[int], progress: float) -> LossShare:
    ids = torch.tensor(token_ids)
    responses = ResponseTokens(ids, torch.arange(len(ids)), (len(ids),))
    return objective(policy_scores(logits, responses, objective.needs), responses, progress=progress)


@pytest.mark.parametrize(("coefficient", "loss"), [(0, 1.330132), (0.25, 1.130132), (0.5, 0.930132), (1, 0.530132)])
def test_auxiliary_confidence_has_its_vectors(coefficient: float, loss: float) -> None:
    result = share(AuxConf(highest=coefficient, warmup=0.0), torch.tensor([LOGITS]), [WEAK_TOKEN], progress=0.0)
    assert result.loss(1).item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "b", "loss"), [(1, 0.310026, 1.082111), (0.5, 0.167982, 1.195747), (4, 0.450166, 0.969999)]
)
def test_adaptive_confidence_has_its_vectors(temperature: float, b: float, loss: float) -> None:
    result = share(AdaptConf(temperature=temperature), torch.tensor([LOGITS]), [WEAK_TOKEN], progress=0.0)
    assert result.loss(1).item() == pytest.approx(loss, abs=1e-6)
    assert combine_metrics([result.metrics])["coefficient"] == pytest.approx(b, abs=1e-6)


def test_the_inverted_direction_has_its_vector() -> None:
    objective = AdaptConf(temperature=1.0, direction="inverted")
    result = share(objective, torch.tensor([LOGITS]), [WEAK_TOKEN], progress=0.0)
    assert combine_metrics([result.metrics])["coefficient"] == pytest.approx(0.689974, abs=1e-6)
    assert result.loss(1).item() == pytest.approx(0.310026 * 1.330132 + 0.689974 * 0.530132, abs=1e-6)


def test_the_ramps_have_their_vectors() -> None:
    assert released_ramp(0.05, 0.5, 0.1) == pytest.approx(0.025)
    assert linear_ramp(0.05, 0.5, 0.1) == pytest.approx(0.25)


def test_the_ramp_reaches_the_loss() -> None:
    logits = torch.tensor([LOGITS])
    half_way = share(AuxConf(highest=0.5, warmup=0.2), logits, [WEAK_TOKEN], progress=0.1)
    assert half_way.loss(1).item() == pytest.approx(1.130132, abs=1e-6)
    released = share(AuxConfReleased(highest=0.5, warmup=0.1), logits, [WEAK_TOKEN], progress=0.1)
    assert combine_metrics([released.metrics])["coefficient"] == pytest.approx(0.05)
    after = share(AuxConfReleased(highest=0.5, warmup=0.1), logits, [WEAK_TOKEN], progress=0.11)
    assert after.loss(1).item() == pytest.approx(0.930132, abs=1e-6)


@settings(deadline=None, max_examples=100)
@given(shares, shares, shares, st.floats(0.01, 1))
def test_the_ramp_is_continuous_monotone_and_bounded(
    first: float, second: float, highest: float, warmup: float
) -> None:
    low, high = sorted((first, second))
    rise = linear_ramp(high, highest, warmup) - linear_ramp(low, highest, warmup)
    assert -1e-12 <= rise <= highest / warmup * (high - low) + 1e-12
    assert linear_ramp(0.0, highest, warmup) == 0
    assert linear_ramp(1.0, highest, warmup) == highest


def test_the_released_ramp_jumps() -> None:
    assert released_ramp(0.1, 0.5, 0.1) == pytest.approx(0.05)
    assert released_ramp(0.1 + 1e-9, 0.5, 0.1) == 0.5


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5))
def test_b_is_the_closed_form_at_most_a_half_and_a_half_only_where_both_agree(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs_NV = torch.log_softmax(torch.randn(20, 6, generator=generator, dtype=torch.float64) * 3, -1)
    token_ids_N = torch.randint(0, 6, (20,), generator=generator)
    weak_N, own_N = logprobs_NV.gather(-1, token_ids_N[:, None])[:, 0], logprobs_NV.amax(-1)
    b_N = adaptive_coefficients(weak_N, own_N, temperature)
    weak_power_N, own_power_N = weak_N.exp() ** (1 / temperature), own_N.exp() ** (1 / temperature)
    torch.testing.assert_close(b_N, weak_power_N / (weak_power_N + own_power_N))
    is_agreed_N = token_ids_N == logprobs_NV.argmax(-1)
    assert bool((b_N[is_agreed_N] == 0.5).all())
    assert bool((b_N[~is_agreed_N] < 0.5).all())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["paper", "inverted"]))
def test_neither_the_choice_of_the_own_token_nor_its_weight_has_a_gradient(seed: int, direction: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(8, 5, generator=generator, dtype=torch.float64).requires_grad_()
    token_ids_N = torch.randint(0, 5, (8,), generator=generator)
    objective = AdaptConf(temperature=1.0, direction=direction)  # type: ignore[arg-type]
    (ours,) = torch.autograd.grad(share(objective, logits_NV, token_ids_N.tolist(), 0.0).loss_sum, logits_NV)

    probs_NV = torch.softmax(logits_NV, -1).detach()
    weak_N, own_N = probs_NV[torch.arange(8), token_ids_N], probs_NV.amax(-1)
    b_N = weak_N / (weak_N + own_N)
    coefficient_N1 = (b_N if direction == "paper" else 1 - b_N)[:, None]
    one_hot = torch.nn.functional.one_hot
    target_NV = (1 - coefficient_N1) * one_hot(token_ids_N, 5) + coefficient_N1 * one_hot(probs_NV.argmax(-1), 5)
    torch.testing.assert_close(ours, probs_NV - target_NV)


def test_where_both_tokens_agree_confidence_changes_nothing() -> None:
    logprobs_N = torch.tensor([-0.2, -0.7])
    for coefficient in (0.0, 0.3, 1.0):
        torch.testing.assert_close(confidence_losses(logprobs_N, logprobs_N, coefficient), -logprobs_N)
    result = share(AuxConf(), torch.tensor([LOGITS, LOGITS]), [1, 0], progress=1.0)
    assert combine_metrics([result.metrics])["agreement"] == 0.5
