"""Draws: the numbers against plain integer arithmetic, the warps against a full sort, frequencies by chi-square."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from cong.decoding import decode_step, draw, prompt_seed, stack_rules, uniforms, warp
from cong.schemas import SamplingParameters

MASK = 2**64 - 1


def splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**63 - 1), st.integers(0, 4096), st.integers(0, 10**6))
def test_uniforms_equal_integer_arithmetic(seed: int, index: int, position: int) -> None:
    bits = splitmix(splitmix(splitmix(seed) ^ index) ^ position)
    (u,) = uniforms(torch.tensor([seed]), torch.tensor([index]), torch.tensor([position])).tolist()
    assert u == (bits >> 11) * 2.0**-53
    assert 0.0 <= u < 1.0


def test_splitmix_matches_its_published_sequence() -> None:
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(splitmix(state))
        state = (state + 0x9E3779B97F4A7C15) & MASK
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_are_uniform_along_every_coordinate() -> None:
    """Kolmogorov-Smirnov along seed, sample index and position; p < 1e-6 would be three false alarms in a million."""
    count = 20_000
    walk, zero = torch.arange(count), torch.zeros(count).long()
    for arguments in ((walk, zero, zero), (zero, walk, zero), (zero, zero, walk)):
        assert kstest(uniforms(*arguments).numpy(), "uniform").pvalue > 1e-6


def reference_warp(scores: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Sort everything, cut, normalise: one row, in Python floats."""
    best = max(scores)
    weights = [math.exp((s - best) / temperature) if s > -math.inf else 0.0 for s in scores]
    total = math.fsum(weights)
    order = sorted((v for v, w in enumerate(weights) if w > 0), key=lambda v: (-weights[v], v))
    order = order[: top_k or len(order)]
    total = math.fsum(weights[v] for v in order)
    kept: list[int] = []
    for v in order:
        if kept and math.fsum(weights[k] for k in kept) >= top_p * total:
            break
        kept.append(v)
    mass = math.fsum(weights[v] for v in kept)
    return [weights[v] / mass if v in kept else 0.0 for v in range(len(scores))]


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.3, 0.8, 1.0, 1.7]),
    st.sampled_from([0, 1, 2, 5, 40]),
    st.sampled_from([0.05, 0.3, 0.72, 0.95, 1.0]),
)
def test_top_k_and_top_p_equal_a_full_sort(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 31, generator=generator, dtype=torch.float64) * 2
    scores[torch.rand(3, 31, generator=generator) < 0.3] = -math.inf
    scores[:, 0] = 0.5
    parameters = SamplingParameters.plain(temperature=temperature, top_k=top_k, top_p=top_p)
    probs = warp(scores, stack_rules([parameters] * 3, 31)).exp()
    for row in range(3):
        # temperature reaches the rules in float32, so it is compared as such
        oracle = reference_warp(scores[row].tolist(), torch.tensor(temperature).item(), top_k, top_p)
        torch.testing.assert_close(probs[row], torch.tensor(oracle, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_equal_scores_are_kept_in_order_of_id() -> None:
    scores = torch.zeros(1, 6)
    rules = stack_rules([SamplingParameters.plain(top_k=2)], 6)
    assert warp(scores, rules).exp().tolist() == [[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]
    rules = stack_rules([SamplingParameters.plain(top_p=0.5)], 6)
    assert (warp(scores, rules) > -math.inf).tolist() == [[True, True, True, False, False, False]]


def test_a_row_without_cuts_is_untouched_by_its_neighbours_cuts() -> None:
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    mixed = stack_rules([SamplingParameters.plain(), SamplingParameters.plain(top_p=0.5, top_k=3)], 50)
    torch.testing.assert_close(warp(scores, mixed)[0], torch.log_softmax(scores[0], -1))


def test_frequencies_follow_the_distribution() -> None:
    """Chi-square at the 1 - 1e-6 quantile: a right program fails this once in a million changes of its seeds."""
    count = 40_000
    scores = torch.tensor([[0.3, -1.0, 1.2, -math.inf, 0.0, -3.0, 0.9]])
    logq = warp(scores, stack_rules([SamplingParameters.plain(temperature=0.8)], 7))
    numbers = uniforms(torch.arange(count), torch.zeros(count).long(), torch.full((count,), 5))
    tokens = draw(logq.expand(count, -1), numbers)
    observed = torch.bincount(tokens, minlength=7).double()
    expected = logq.exp().double()[0] * count
    assert observed[3] == 0
    alive = expected > 0
    statistic = ((observed - expected)[alive] ** 2 / expected[alive]).sum().item()
    assert statistic < chi2.ppf(1 - 1e-6, int(alive.sum()) - 1)


def test_a_draw_at_the_very_top_is_a_token_that_can_be_drawn() -> None:
    logq = torch.log_softmax(torch.tensor([[0.0, 1.0, -math.inf, -math.inf]]), -1)
    assert draw(logq, torch.tensor([1.0], dtype=torch.float64)).item() == 1


def test_a_row_that_is_no_numbers_draws_a_token_that_says_so() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    logits[1, 3] = math.nan
    for parameters in (SamplingParameters.plain(temperature=0.8), SamplingParameters.plain(top_p=0.9, top_k=3)):
        for rows in ([0, 1, 2], [1]):
            where = torch.tensor(rows), torch.tensor(rows)
            step = decode_step([logits[rows]], stack_rules([parameters] * len(rows), 7), *where)
            assert step.mixture_logprob_B.isfinite().tolist() == [row != 1 for row in rows]
            assert (step.token_B < 7).all(), "whatever it is, it may be looked up"


def test_prompts_that_share_a_seed_do_not_share_their_numbers() -> None:
    """The first uniform of 20,000 prompts under one seed is uniform; p < 1e-6 would be one false alarm in a million."""
    seeds = torch.tensor([prompt_seed(7, (5, number)) for number in range(20_000)])
    zero = torch.zeros(len(seeds)).long()
    assert kstest(uniforms(seeds, zero, zero).numpy(), "uniform").pvalue > 1e-6
    assert len(set(seeds.tolist())) == len(seeds)
    assert prompt_seed(7, (5, 6)) == prompt_seed(7, [5, 6]) != prompt_seed(7, (6, 5))
    assert 0 <= prompt_seed(2**63 - 1, (0,)) < 2**63
