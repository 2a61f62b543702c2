"""Identities that hold for any logits, checked on random ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cong.decoding import decode_step, equivalent_alpha, logprobs, mix, parametrise, penalize, stack_rules, warp
from cong.errors import ConfigError
from cong.schemas import SamplingParameters

VOCAB = 23
seeds = st.integers(0, 2**32 - 1)
alphas = st.floats(0.0, 1.0)
temperatures = st.floats(0.2, 2.0)


def pair(seed: int, rows: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    aligned, base = (torch.randn(rows, VOCAB, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    return aligned, base


def probs(logits: list[Tensor], parameters: SamplingParameters) -> Tensor:
    rules = stack_rules([parameters] * len(logits[0]), VOCAB)
    return warp(mix(logits, rules).scores_BV, rules).exp()


@settings(deadline=None, max_examples=50)
@given(seeds, temperatures)
def test_alpha_one_without_a_head_is_the_plain_aligned_model(seed: int, temperature: float) -> None:
    aligned, base = pair(seed)
    contrast = SamplingParameters.contrastive(1.0, head_lambda=0.0, temperature=temperature)
    torch.testing.assert_close(probs([aligned, base], contrast), torch.softmax(aligned / temperature, -1))


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_alpha_zero_greedy_is_alignment_aware_decoding(seed: int) -> None:
    aligned, base = pair(seed)
    log_a, log_b = logprobs(aligned), logprobs(base)
    ratio = (log_a - log_b).masked_fill(log_a < log_a.amax(-1, keepdim=True) + math.log(0.1), -math.inf)
    named = parametrise("aad")
    greedy = SamplingParameters(weights=named.weights, head_lambda=named.head_lambda, temperature=0.0)
    assert torch.equal(probs([aligned, base], greedy).argmax(-1), ratio.argmax(-1))
    assert torch.equal(
        probs([aligned, base], greedy), probs([aligned, base], SamplingParameters.contrastive(0.0, temperature=0.0))
    )


@settings(deadline=None, max_examples=50)
@given(seeds, alphas)
def test_score_is_a_blend_of_fluency_and_implicit_reward(seed: int, alpha: float) -> None:
    aligned, base = pair(seed)
    log_a, log_b = logprobs(aligned), logprobs(base)
    scores = mix([aligned, base], stack_rules([SamplingParameters.contrastive(alpha, head_lambda=0.0)] * 4, VOCAB))
    blend = alpha * log_a + (1 - alpha) * (log_a - log_b)
    torch.testing.assert_close(scores.scores_BV, blend, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(0.0, 4.0), temperatures)
def test_obrien_lewis_draws_like_its_alpha(seed: int, beta: float, temperature: float) -> None:
    aligned, base = pair(seed)
    weights = parametrise("obrien-lewis", beta=beta).weights
    alpha, alpha_temperature = equivalent_alpha(weights, temperature)
    assert alpha == pytest.approx(1 / (1 + beta))
    theirs = probs([aligned, base], SamplingParameters(weights=weights, temperature=temperature))
    ours = probs([aligned, base], SamplingParameters.contrastive(alpha, temperature=alpha_temperature))
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(1.0, 5.0), temperatures)
def test_decoding_time_realignment_draws_like_its_alpha(seed: int, strength: float, temperature: float) -> None:
    aligned, base = pair(seed)
    weights = parametrise("dera", strength=strength).weights
    alpha, alpha_temperature = equivalent_alpha(weights, temperature)
    assert alpha == pytest.approx(1 / strength)
    theirs = probs([aligned, base], SamplingParameters(weights=weights, head_lambda=0.0, temperature=temperature))
    mixed = torch.softmax((strength * aligned + (1 - strength) * base) / temperature, -1)
    ours = SamplingParameters.contrastive(alpha, head_lambda=0.0, temperature=alpha_temperature)
    torch.testing.assert_close(theirs, mixed, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(theirs, probs([aligned, base], ours), atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(0.05, 1.0), st.floats(0.05, 2.0))
def test_temperature_alpha_is_the_tilted_base(seed: int, alpha: float, beta: float) -> None:
    """Where log pi_a = log pi_b + r / beta + const, T = alpha gives pi_b exp(r / (alpha beta))."""
    _, base = pair(seed)
    reward = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    aligned = logprobs(base) + reward / beta
    contrast = SamplingParameters.contrastive(alpha, head_lambda=0.0, temperature=alpha, logprob_floor=-1e4)
    tilted = torch.softmax(logprobs(base) + reward / (alpha * beta), -1)
    torch.testing.assert_close(probs([aligned, base], contrast), tilted, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(0.01, 1.0))
def test_equal_networks_keep_the_aligned_order(seed: int, alpha: float) -> None:
    aligned, _ = pair(seed)
    scores = mix([aligned, aligned.clone()], stack_rules([SamplingParameters.contrastive(alpha)] * 4, VOCAB))
    expected = (alpha * logprobs(aligned)).masked_fill(~scores.is_head_BV, -math.inf)
    torch.testing.assert_close(scores.scores_BV, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(scores.scores_BV.argmax(-1), aligned.argmax(-1))


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_swapping_the_pair_flips_the_implicit_reward(seed: int) -> None:
    aligned, base = pair(seed)
    position = torch.zeros(4).long()
    rules = stack_rules([SamplingParameters.contrastive(0.4, head_lambda=0.0)] * 4, VOCAB)
    step = decode_step([aligned, base], rules, position, position)
    token_B1 = step.token_B[:, None]
    there = (logprobs(aligned) - logprobs(base)).gather(-1, token_B1)
    back = (logprobs(base) - logprobs(aligned)).gather(-1, token_B1)
    torch.testing.assert_close(there, -back)
    torch.testing.assert_close(step.logprobs_BK[:, 0] - step.logprobs_BK[:, 1], there.squeeze(-1))


@settings(deadline=None, max_examples=50)
@given(seeds, alphas)
def test_two_tokens_swap_rank_at_their_crossing(seed: int, alpha: float) -> None:
    aligned, base = pair(seed, rows=1)
    log_a, log_b = logprobs(aligned)[0, :2], logprobs(base)[0, :2]
    crossing = 1 - (log_a[0] - log_a[1]) / (log_b[0] - log_b[1])
    if abs(crossing - alpha) < 1e-4 or abs(log_b[0] - log_b[1]) < 1e-3:
        return
    rules = stack_rules([SamplingParameters.contrastive(alpha, head_lambda=0.0)], VOCAB)
    first, second = mix([aligned, base], rules).scores_BV[0, :2]
    assert (first > second) == ((alpha - crossing) * (log_b[0] - log_b[1]) > 0)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(1.05, 2.0), st.floats(-20, 20))
def test_only_the_additive_penalty_ignores_a_constant(seed: int, penalty: float, constant: float) -> None:
    aligned, base = pair(seed)
    is_seen = torch.rand(4, VOCAB, generator=torch.Generator().manual_seed(seed)) < 0.5

    def after(rule: str, shift: float) -> Tensor:
        parameters = SamplingParameters.contrastive(0.4, head_lambda=0.0, repetition_penalty=penalty, penalty_rule=rule)
        rules = stack_rules([parameters] * 4, VOCAB)
        mixture = mix([aligned, base], rules)
        shifted = type(mixture)(mixture.scores_BV + shift, mixture.logprobs_KBV, mixture.is_head_BV, None)
        return torch.softmax(penalize(shifted, rules, is_seen), -1)

    torch.testing.assert_close(after("additive", constant), after("additive", 0.0), atol=1e-9, rtol=1e-6)
    if abs(constant) > 15:
        assert not torch.allclose(after("multiplicative", constant), after("multiplicative", 0.0), atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_exempt_tokens_feel_no_contrast(seed: int) -> None:
    aligned, base = pair(seed)
    rules = stack_rules(
        [SamplingParameters.contrastive(0.4, head_lambda=0.0, exempt_token_ids=(3, 7)) for _ in range(4)], VOCAB
    )
    scores = mix([aligned, base], rules).scores_BV
    torch.testing.assert_close(scores[:, [3, 7]], 0.4 * logprobs(aligned)[:, [3, 7]], atol=1e-5, rtol=1e-5)
    free = mix([aligned, base], stack_rules([SamplingParameters.contrastive(0.4, head_lambda=0.0)] * 4, VOCAB))
    others = [v for v in range(VOCAB) if v not in (3, 7)]
    assert torch.equal(scores[:, others], free.scores_BV[:, others])


def test_the_floor_bounds_the_bonus_of_tokens_the_base_finds_impossible() -> None:
    aligned = torch.zeros(1, 3)
    base = torch.tensor([[0.0, 0.0, -500.0]])
    for floor, bonus in ((-30.0, 30.0), (-10.0, 10.0)):
        rules = stack_rules([SamplingParameters.contrastive(0.0, logprob_floor=floor)], 3)
        mixture = mix([aligned, base], rules)
        assert mixture.scores_BV[0, 2].item() == pytest.approx(-math.log(3) + bonus, abs=1e-4)
        assert mixture.floored_BV is not None
        assert mixture.floored_BV.tolist() == [[False, False, True]]


@pytest.mark.parametrize("networks", [1, 2, 3])
def test_every_number_of_networks_is_the_weighted_sum(networks: int) -> None:
    generator = torch.Generator().manual_seed(networks)
    logits = [torch.randn(2, VOCAB, generator=generator) for _ in range(networks)]
    weights = (1.0, -0.7, 0.3)[:networks]
    mixture = mix(logits, stack_rules([SamplingParameters(weights=weights, head_lambda=0.0)] * 2, VOCAB))
    expected = sum(weight * torch.log_softmax(z, -1) for weight, z in zip(weights, logits, strict=True))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(mixture.scores_BV, expected)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_a_row_gets_the_same_token_alone_and_in_a_crowd_of_other_rules(seed: int) -> None:
    aligned, base = pair(seed, rows=6)
    crowd = [
        SamplingParameters.contrastive(0.4, seed=1),
        SamplingParameters.contrastive(0.0, temperature=0.0),
        SamplingParameters.contrastive(0.9, top_p=0.7, seed=3),
        SamplingParameters.contrastive(0.2, top_k=2, temperature=0.7, seed=4),
        SamplingParameters.contrastive(0.4, repetition_penalty=1.5, penalty_rule="reference", seed=5),
        SamplingParameters(weights=(1.5, -0.5), network_temperatures=(1.0, 0.5), exempt_token_ids=(1,), seed=6),
    ]
    is_seen = torch.rand(6, VOCAB, generator=torch.Generator().manual_seed(seed)) < 0.3
    index, position = torch.arange(6), torch.arange(6) * 7
    together = decode_step([aligned, base], stack_rules(crowd, VOCAB), index, position, is_seen)
    for row, parameters in enumerate(crowd):
        one = slice(row, row + 1)
        alone = decode_step(
            [aligned[one], base[one]], stack_rules([parameters], VOCAB), index[one], position[one], is_seen[one]
        )
        assert alone.token_B.item() == together.token_B[row].item()
        torch.testing.assert_close(alone.mixture_logprob_B[0], together.mixture_logprob_B[row], atol=1e-6, rtol=1e-6)


def test_unknown_methods_and_parameters_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="nearest known one is 'proxy-tuning'"):
        parametrise("proxytuning")
    with pytest.raises(ConfigError, match="takes: alpha, relative_top"):
        parametrise("cong", beta=0.1)
    with pytest.raises(ConfigError, match="have no alpha"):
        equivalent_alpha((1.0, 1.0, -1.0))
