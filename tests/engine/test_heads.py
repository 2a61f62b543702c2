"""Drawing from head sets by kernels, by Triton's interpreter where there is no GPU, against the plain rule."""

import importlib.util
import math
import random
from typing import Any

import pytest
import torch

from cong.decoding import Step, decode_step, stack_rules, uniforms
from cong.engine.drawing import Drawer
from cong.engine.gpu.heads import HEAD_WIDTH, draw_on_gpu, find_heads_on_gpu
from cong.engine.rule_numbers import number_rules
from cong.engine.sequence import Sequence
from cong.schemas import SamplingParameters

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
VOCAB = 9_000
"""More than one part."""
ROWS = 12


def random_rules(generator: random.Random, num_networks: int) -> list[SamplingParameters]:
    """Rules of every kind that the kernels are for."""
    weights = {1: (1.0,), 2: (1.0, -0.6), 3: (1.0, 0.8, -0.8)}[num_networks]
    has_top, has_penalty, has_exempt = (generator.random() < 0.7 for _ in range(3))
    choices: list[dict[str, Any]] = [
        {
            "weights": weights,
            "head_lambda": generator.choice([0.05, 0.1, 0.5, 1.0]),
            "temperature": generator.choice([0.0, 0.7, 1.0]),
            "top_p": generator.choice([0.5, 0.9, 1.0]) if has_top else 1.0,
            "top_k": generator.choice([0, 3, 40]) if has_top else 0,
            "repetition_penalty": generator.choice([1.0, 1.3]) if has_penalty else 1.0,
            "penalty_rule": generator.choice(["additive", "multiplicative", "reference"]),
            "exempt_token_ids": generator.choice([(), tuple(range(500))]) if has_exempt else (),
            "logprob_floor": generator.choice([-30.0, -6.0]),
            "seed": generator.randrange(1000),
        }
        for _ in range(ROWS)
    ]
    return [SamplingParameters.model_validate(choice) for choice in choices]


def draw_both(
    logits: tuple[torch.Tensor, ...], parameters: list[SamplingParameters], trial: int, *, has_masks: bool
) -> tuple[torch.Tensor, Step]:
    """The kernels' record and the plain rule's step on the same rows."""
    generator = torch.Generator().manual_seed(trial)
    rules = stack_rules(parameters, VOCAB, DEVICE)
    where = torch.arange(ROWS, device=DEVICE), torch.full((ROWS,), trial, device=DEVICE)
    is_seen, banned = (
        (torch.rand(ROWS, VOCAB, generator=generator) < share).to(DEVICE) if has_masks else None for share in (0.3, 0.1)
    )
    if rules.penalty_B is None:
        is_seen = None
    elif is_seen is None:
        is_seen = torch.zeros(ROWS, VOCAB, dtype=torch.bool, device=DEVICE)
    theirs = decode_step(logits, rules, *where, is_seen, banned)
    heads = find_heads_on_gpu(logits, rules.head_log_lambda_B)
    numbers = number_rules(parameters, VOCAB, rules.exempt_BV, DEVICE)
    ours = draw_on_gpu(heads, numbers, uniforms(rules.seed_B, *where), VOCAB, is_seen, banned)
    return ours, theirs


@pytest.mark.parametrize("num_networks", [1, 2, 3])
def test_the_kernels_draw_what_the_plain_rule_draws(num_networks: int) -> None:
    generator = torch.Generator().manual_seed(num_networks)
    for trial in range(40 if HAS_GPU else 4):
        # Slices of wider rows.
        logits = tuple(
            (4.0 * torch.randn(ROWS, VOCAB + 7, generator=generator)).to(DEVICE)[:, :VOCAB] for _ in range(num_networks)
        )
        parameters = random_rules(random.Random(10 * num_networks + trial), num_networks)
        ours, theirs = draw_both(logits, parameters, trial, has_masks=trial % 2 == 0)
        assert ours[:, 0].tolist() == theirs.token_B.tolist()
        assert ours[:, 1].tolist() == theirs.head_size_B.tolist()
        torch.testing.assert_close(ours[:, 2].float(), theirs.mixture_logprob_B, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(ours[:, 3:].float(), theirs.logprobs_BK, rtol=1e-5, atol=1e-5)


def test_half_precision_logits_are_read_as_they_are() -> None:
    dtype = torch.bfloat16 if HAS_GPU else torch.float16
    generator = torch.Generator().manual_seed(4)
    logits = tuple((4.0 * torch.randn(ROWS, VOCAB, generator=generator)).to(DEVICE, dtype) for _ in range(2))
    parameters = [SamplingParameters.contrastive(0.4, temperature=0.0, seed=row) for row in range(ROWS)]
    ours, theirs = draw_both(logits, parameters, 0, has_masks=False)
    assert ours[:, 0].tolist() == theirs.token_B.tolist()
    torch.testing.assert_close(ours[:, 3:].float(), theirs.logprobs_BK, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", [0, 1])
@pytest.mark.parametrize("impossible", [slice(1024, 4096), slice(5000, VOCAB)])
def test_stretches_of_tokens_that_a_network_rules_out_change_nothing_else(network: int, impossible: slice) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = [(4.0 * torch.randn(ROWS, VOCAB, generator=generator)).to(DEVICE) for _ in range(2)]
    logits[network][:, impossible] = float("-inf")
    parameters = [SamplingParameters.contrastive(0.4, seed=row) for row in range(ROWS)]
    ours, theirs = draw_both((logits[0], logits[1]), parameters, 0, has_masks=False)
    assert ours[:, 0].tolist() == theirs.token_B.tolist()
    assert ours[:, 1].tolist() == theirs.head_size_B.tolist()
    torch.testing.assert_close(ours[:, 3:].float(), theirs.logprobs_BK, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("network", [0, 1])
def test_logits_that_are_no_numbers_are_told_by_log_probs_that_are_none(network: int, wrong: float) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = tuple((4.0 * torch.randn(ROWS, VOCAB, generator=generator)).to(DEVICE) for _ in range(2))
    logits[network][: ROWS // 2, 77] = wrong
    ways: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"top_p": 0.9}]
    ways = [way | penalty for way in ways for penalty in ({}, {"repetition_penalty": 1.3, "penalty_rule": "reference"})]
    parameters = [SamplingParameters.contrastive(0.4, seed=row, **ways[row % len(ways)]) for row in range(ROWS)]
    ours, theirs = draw_both(logits, parameters, 0, has_masks=True)
    for numbers in (ours[:, 2:].sum(1), theirs.mixture_logprob_B + theirs.logprobs_BK.sum(1)):
        assert numbers.isfinite().tolist() == [row >= ROWS // 2 for row in range(ROWS)]
    assert ours[:, 0].tolist()[ROWS // 2 :] == theirs.token_B.tolist()[ROWS // 2 :]
    for tokens in (ours[:, 0], theirs.token_B):
        assert ((tokens >= 0) & (tokens < VOCAB)).all(), "whatever it is, it may be looked up"


def test_a_head_set_that_does_not_fit_is_told_by_its_size() -> None:
    logits = (torch.zeros(2, VOCAB, device=DEVICE),)
    heads = find_heads_on_gpu(logits, torch.tensor([-1.0, -1.0], device=DEVICE))
    assert heads.sizes_B.tolist() == [VOCAB, VOCAB]
    assert heads.ids_BH.tolist() == [list(range(HEAD_WIDTH))] * 2


@pytest.mark.parametrize("steepness", [4.0, 0.0])
def test_a_drawer_says_the_same_whether_it_looks_at_head_sets_or_at_all(steepness: float) -> None:
    """Flat logits make every head set too large: it draws again, from all."""
    generator = torch.Generator().manual_seed(5)
    logits = tuple((steepness * torch.randn(3, VOCAB, generator=generator)).to(DEVICE) for _ in range(2))
    parameters = SamplingParameters.contrastive(0.4, temperature=0.8, top_p=0.95, repetition_penalty=1.2, seed=3)
    drawn = []
    for finds_heads in (True, False):
        drawer = Drawer(VOCAB, DEVICE, finds_heads=finds_heads)
        sequences = [Sequence("r", row, (5, 6, 7), parameters, frozenset(), row, 0.0) for row in range(3)]
        tokens = drawer.draw(sequences, logits).tokens()
        assert (tokens is None) == (finds_heads and steepness == 0.0)
        drawn.append(tokens or drawer.draw_from_all(sequences, logits).tokens() or [])
    for ours, theirs in zip(*drawn, strict=True):
        assert (ours.token_id, ours.head_size) == (theirs.token_id, theirs.head_size)
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert ours.mixture_logprob == pytest.approx(theirs.mixture_logprob, abs=2e-5)
