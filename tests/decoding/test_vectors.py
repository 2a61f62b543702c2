"""Known answers of the decoding rule, worked by hand or in other programs, to 1e-6.

Five tokens A..E under an aligned and a base network, head cut 0.1.
"""

import math

import pytest
import torch
from torch import Tensor

from cong.decoding import (
    decode_step,
    draw,
    interpolate_logits,
    logprobs,
    mix,
    parametrise,
    penalize,
    reference_shift,
    stack_rules,
    warp,
)
from cong.schemas import SamplingParameters

ALIGNED = torch.tensor([[2.0, 1.7, 0.2, -1.5, -4.0]], dtype=torch.float64)
BASE = torch.tensor([[2.2, 0.7, 0.5, -1.0, -9.0]], dtype=torch.float64)
A, B, C, D, E = range(5)
NO = -math.inf


def close(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual.double().flatten(), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def scores_of(parameters: SamplingParameters) -> Tensor:
    return mix([ALIGNED, BASE], stack_rules([parameters], 5)).scores_BV


def probs_of(parameters: SamplingParameters, logits: list[Tensor] | None = None) -> Tensor:
    rules = stack_rules([parameters], 5)
    return warp(mix(logits or [ALIGNED, BASE], rules).scores_BV, rules).exp()


def test_logprobs_of_both_networks_and_their_ratio() -> None:
    close(logprobs(ALIGNED), [-0.662066, -0.962066, -2.462066, -4.162066, -6.662066])
    close(logprobs(BASE), [-0.369209, -1.869209, -2.069209, -3.569209, -11.569209])
    close(logprobs(ALIGNED) - logprobs(BASE), [-0.292857, 0.907143, -0.392857, -0.592857, 4.907143])


@pytest.mark.parametrize(
    ("alpha", "scores", "probs", "best"),
    [
        (0.0, [-0.292857, 0.907143, -0.392857], [0.191389, 0.635435, 0.173176], B),
        (0.4, [-0.440540, 0.159460, -1.220540], [0.304829, 0.555435, 0.139736], B),
        (0.6, [-0.514382, -0.214382, -1.634382], [0.373673, 0.504405, 0.121922], B),
        (1.0, [-0.662066, -0.962066, -2.462066], [0.524627, 0.388653, 0.086720], A),
    ],
)
def test_scores_probabilities_and_greedy_pick_over_alpha(
    alpha: float, scores: list[float], probs: list[float], best: int
) -> None:
    parameters = SamplingParameters.contrastive(alpha)
    close(scores_of(parameters), [*scores, NO, NO])
    close(probs_of(parameters), [*probs, 0.0, 0.0])
    close(probs_of(SamplingParameters.contrastive(alpha, temperature=0.0)), [float(v == best) for v in range(5)])


def test_alpha_of_exactly_the_crossing_ties_a_and_b() -> None:
    close(scores_of(SamplingParameters.contrastive(0.8)), [-0.588224, -0.588224, -2.048224, NO, NO])
    close(probs_of(SamplingParameters.contrastive(0.8)), [0.447981, 0.447981, 0.104037, 0.0, 0.0])


def test_without_the_head_the_worst_token_wins() -> None:
    assert scores_of(SamplingParameters.contrastive(0.0, head_lambda=0.0))[0, E].item() == pytest.approx(
        4.907143, abs=1e-6
    )
    open_scores = scores_of(SamplingParameters.contrastive(0.4, head_lambda=0.0))
    assert open_scores[0, E].item() == pytest.approx(0.279460, abs=1e-6)
    assert open_scores.argmax().item() == E


@pytest.mark.parametrize(
    ("temperature", "top_p", "probs"),
    [
        (0.8, 1.0, [0.286189, 0.605862, 0.107948]),
        (0.8, 0.95, [0.286189, 0.605862, 0.107948]),
        (0.8, 0.85, [0.320821, 0.679179, 0.0]),
        (0.4, 1.0, [0.177811, 0.796892, 0.025298]),
    ],
)
def test_temperature_and_top_p(temperature: float, top_p: float, probs: list[float]) -> None:
    parameters = SamplingParameters.contrastive(0.4, temperature=temperature, top_p=top_p)
    close(probs_of(parameters), [*probs, 0.0, 0.0])


def test_temperature_alpha_is_the_stronger_optimum() -> None:
    head = torch.tensor([[True, True, True, False, False]])
    pi_a, pi_b = logprobs(ALIGNED).exp(), logprobs(BASE).exp()
    tilted = (pi_b * (pi_a / pi_b) ** 2.5).masked_fill(~head, 0.0)
    close(probs_of(SamplingParameters.contrastive(0.4, temperature=0.4)), (tilted / tilted.sum()).flatten().tolist())


def test_penalty_on_clean_scores_is_weak() -> None:
    parameters = SamplingParameters.contrastive(0.4, repetition_penalty=1.2, penalty_rule="multiplicative")
    rules = stack_rules([parameters], 5)
    is_seen = torch.tensor([[False, True, False, False, False]])
    scores = penalize(mix([ALIGNED, BASE], rules), rules, is_seen)
    close(scores, [-0.440540, 0.132883, -1.220540, NO, NO])
    close(warp(scores, rules).exp(), [0.309335, 0.548863, 0.141801, 0.0, 0.0])


def test_additive_penalty_divides_the_probability() -> None:
    rules = stack_rules([SamplingParameters.contrastive(0.4, repetition_penalty=1.2)], 5)
    is_seen = torch.tensor([[False, True, False, False, False]])
    scores = penalize(mix([ALIGNED, BASE], rules), rules, is_seen)
    close(scores, [-0.440540, 0.159460 - math.log(1.2), -1.220540, NO, NO])


def test_shift_of_the_published_code() -> None:
    rules = stack_rules([SamplingParameters.contrastive(0.4, repetition_penalty=1.2, penalty_rule="reference")], 5)
    mixture = mix([ALIGNED, BASE], rules)
    close(reference_shift(mixture, rules), [0.653099])
    scores = penalize(mixture, rules, torch.zeros(1, 5, dtype=torch.bool))
    close(scores, [0.212559, 0.812559, -0.567441, NO, NO])


@pytest.mark.parametrize(("vocab_size", "shift"), [(128_256, 7.056461), (151_936, 7.158121)])
def test_shift_and_penalty_at_the_width_of_a_real_vocabulary(vocab_size: int, shift: float) -> None:
    """The five tokens of the example in a vocabulary whose other tokens have no probability at all."""
    aligned, base = (
        torch.cat([logits, torch.full((1, vocab_size - 5), -1e4, dtype=torch.float64)], dim=-1)
        for logits in (ALIGNED, BASE)
    )
    parameters = SamplingParameters.contrastive(0.4, repetition_penalty=1.2, penalty_rule="reference")
    rules = stack_rules([parameters], vocab_size)
    mixture = mix([aligned, base], rules)
    close(reference_shift(mixture, rules), [shift])
    is_seen = torch.zeros(1, vocab_size, dtype=torch.bool)
    is_seen[0, B] = True
    scores = penalize(mixture, rules, is_seen)
    if vocab_size == 128_256:
        close(scores[0, :3], [6.615920, 6.013267, 5.835920])
        close(warp(scores, rules).exp()[0, :3], [0.498563, 0.272892, 0.228544])
    assert scores.argmax().item() == A  # the penalty, weak on clean scores, turns the pick


@pytest.mark.parametrize(("u", "token"), [(0.25, A), (0.50, B), (0.95, C), (0.0, A), (1.0 - 2**-53, C)])
def test_draw_walks_ids_upwards(u: float, token: int) -> None:
    rules = stack_rules([SamplingParameters.contrastive(0.4, temperature=0.8, top_p=0.95)], 5)
    logq = warp(mix([ALIGNED, BASE], rules).scores_BV, rules)
    assert draw(logq, torch.tensor([u], dtype=torch.float64)).item() == token


def test_implicit_reward_of_a_response() -> None:
    response = torch.tensor([B, C, A])
    log_a, log_b = logprobs(ALIGNED)[0, response], logprobs(BASE)[0, response]
    close(log_a.sum(), [-4.086197])
    close(log_b.sum(), [-4.307627])
    close((log_a - log_b).sum(), [0.221429])
    close((log_a - log_b).mean(), [0.073810])


@pytest.mark.parametrize(("head_lambda", "head_size"), [(0.1, 3), (0.5, 2), (0.8, 1)])
def test_head_sizes(head_lambda: float, head_size: int) -> None:
    rules = stack_rules([SamplingParameters.contrastive(0.4, head_lambda=head_lambda)], 5)
    step = decode_step([ALIGNED, BASE], rules, torch.zeros(1).long(), torch.zeros(1).long())
    assert step.head_size_B.item() == head_size


def test_obrien_lewis_form() -> None:
    named = parametrise("obrien-lewis", beta=0.5)
    parameters = SamplingParameters(weights=named.weights, head_lambda=named.head_lambda)
    raw = 1.5 * ALIGNED - 0.5 * BASE
    close(raw[:, :3], [1.90, 2.20, 0.05])
    close(probs_of(parameters), [0.398868, 0.538415, 0.062717, 0.0, 0.0])
    two_thirds = scores_of(SamplingParameters.contrastive(2 / 3))
    close(torch.softmax(1.5 * two_thirds, -1), [0.398868, 0.538415, 0.062717, 0.0, 0.0])


def test_obrien_lewis_scores_are_alpha_scores_scaled() -> None:
    scores = scores_of(SamplingParameters(weights=parametrise("obrien-lewis", beta=1.5).weights, head_lambda=0.0))
    close(scores, [-1.101351, 0.398649, -3.051351, -5.051351, 0.698649])
    close(scores / 2.5, scores_of(SamplingParameters.contrastive(0.4, head_lambda=0.0)).flatten().tolist())


def test_amateur_temperature_is_not_a_change_of_alpha() -> None:
    named = parametrise("contrastive-decoding", coefficient=1.0, amateur_temperature=0.5)
    parameters = SamplingParameters(
        weights=named.weights, head_lambda=named.head_lambda, network_temperatures=named.network_temperatures
    )
    close(scores_of(parameters), [-0.580650, 2.119350, 1.019350, NO, NO])


@pytest.mark.parametrize(
    ("rho", "scores"),
    [
        (0.0, [-0.440540, 0.159460, -1.220540]),
        (0.25, [-0.411932, 0.008068, -1.176932]),
        (0.5, [-0.374237, -0.134237, -1.124237]),
        (0.75, [-0.325775, -0.265775, -1.060775]),
    ],
)
def test_contrast_against_an_interpolated_reference(rho: float, scores: list[float]) -> None:
    named = parametrise("guidance", weight=0.6)
    rules = stack_rules([SamplingParameters(weights=named.weights)], 5)
    close(mix([ALIGNED, interpolate_logits(ALIGNED, BASE, rho)], rules).scores_BV, [*scores, NO, NO])


@pytest.mark.parametrize(("rho", "effective"), [(0.25, 0.470588), (0.5, 0.571429), (0.75, 0.727273)])
def test_interpolating_the_reference_raises_alpha_and_softens(rho: float, effective: float) -> None:
    weight = 0.6
    assert (1 - weight) / (1 - weight * rho) == pytest.approx(effective, abs=1e-6)
    guided = probs_of(SamplingParameters(weights=(1.0, -weight)), [ALIGNED, interpolate_logits(ALIGNED, BASE, rho)])
    softened = SamplingParameters.contrastive(effective, temperature=1 / (1 - weight * rho))
    torch.testing.assert_close(guided, probs_of(softened), atol=1e-5, rtol=0)


def test_proxy_tuning_of_a_third_network() -> None:
    strong = torch.tensor([[1.0, 0.8, 0.9, -2.0, -3.0]], dtype=torch.float64)
    named = parametrise("proxy-tuning", scale=1.0)
    parameters = SamplingParameters(weights=named.weights, head_lambda=named.head_lambda)
    close(probs_of(parameters, [strong, ALIGNED, BASE]), [0.126678, 0.344347, 0.103715, 0.004672, 0.420587])
    masked = SamplingParameters(weights=named.weights, head_lambda=0.1)
    assert probs_of(masked, [strong, ALIGNED, BASE])[0, E] == 0.0


def test_epicode_form() -> None:
    extrapolated = torch.tensor([[2.1, 2.0, 0.1, -1.6, -4.2]], dtype=torch.float64)
    close((1.5 * extrapolated - 0.5 * ALIGNED)[:, :3], [2.15, 2.15, 0.05])
    named = parametrise("epicode", strength=0.5)
    parameters = SamplingParameters(weights=named.weights, head_lambda=named.head_lambda)
    close(probs_of(parameters, [extrapolated, ALIGNED]), [0.471152, 0.471152, 0.057696, 0.0, 0.0])


def test_float32_networks_give_the_same_answers() -> None:
    rules = stack_rules([SamplingParameters.contrastive(0.4)], 5)
    scores = mix([ALIGNED.float(), BASE.float()], rules).scores_BV
    assert scores.dtype == torch.float32
    close(scores, [-0.440540, 0.159460, -1.220540, NO, NO])
