"""Drawing by the compiled kernel against the plain rule: every kind of row, together and alone."""

import math
import random
from typing import Any

import pytest
import torch

from cong.decoding import Step, decode_step, stack_rules
from cong.engine.cpu.library import load_kernel
from cong.engine.drawing import Drawer
from cong.engine.rule_numbers import number_rules
from cong.engine.sequence import Sequence
from cong.schemas import SamplingParameters

VOCAB, ROWS = 1_003, 24
CPU = torch.device("cpu")
WEIGHTS = {1: (1.0,), 2: (1.0, -0.6), 3: (1.0, 0.8, -0.8)}


def random_rules(generator: random.Random, num_networks: int) -> list[SamplingParameters]:
    """Rules of every kind that the kernel is for, also a head set that is the whole vocabulary."""
    choices: list[dict[str, Any]] = [
        {
            "weights": WEIGHTS[num_networks],
            "head_lambda": generator.choice([0.0, 0.05, 0.1, 0.5, 1.0]),
            "temperature": generator.choice([0.0, 0.7, 1.0]),
            "top_p": generator.choice([0.5, 0.9, 1.0]),
            "top_k": generator.choice([0, 1, 3, 40]),
            "repetition_penalty": generator.choice([1.0, 1.3]),
            "penalty_rule": generator.choice(["additive", "multiplicative", "reference"]),
            "exempt_token_ids": generator.choice([(), tuple(range(100))]),
            "logprob_floor": generator.choice([-30.0, -6.0]),
            "seed": generator.randrange(1000),
        }
        for _ in range(ROWS)
    ]
    return [SamplingParameters.model_validate(choice) for choice in choices]


def draw_both(
    logits: list[torch.Tensor], parameters: list[SamplingParameters], trial: int
) -> tuple[torch.Tensor, Step]:
    """The kernel's record and the plain rule's step on the same rows."""
    load_kernel()
    generator = torch.Generator().manual_seed(trial)
    rules = stack_rules(parameters, VOCAB)
    where = torch.arange(ROWS), torch.full((ROWS,), trial)
    is_seen, banned = (torch.rand(ROWS, VOCAB, generator=generator) < share for share in (0.3, 0.3))
    banned[0] = True  # which bans nothing
    masks = is_seen if rules.penalty_B is not None else None, banned if trial % 2 else None
    theirs = decode_step(logits, rules, *where, *masks)
    numbers = number_rules(parameters, VOCAB, rules.exempt_BV, CPU).numbers_BF
    ours = torch.ops.cong.draw_tokens(
        logits, rules.head_log_lambda_B, numbers, torch.stack([rules.seed_B, *where]), *masks, rules.exempt_BV
    )
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_networks", [1, 2, 3])
def test_the_kernel_draws_what_the_plain_rule_draws(num_networks: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_networks)
    for trial in range(20):
        # Slices of wider rows, as vLLM hands them over.
        wide = ((4.0, 0.3)[trial % 4 == 3] * torch.randn(ROWS, num_networks * (VOCAB + 5), generator=generator)).to(
            dtype
        )
        logits = [part[:, :VOCAB] for part in torch.split(wide, VOCAB + 5, dim=1)]
        ours, theirs = draw_both(logits, random_rules(random.Random(100 * num_networks + trial), num_networks), trial)
        assert ours[:, 0].tolist() == theirs.token_B.tolist()
        assert ours[:, 1].tolist() == theirs.head_size_B.tolist()
        torch.testing.assert_close(ours[:, 2].float(), theirs.mixture_logprob_B, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(ours[:, 3:].float(), theirs.logprobs_BK, rtol=1e-5, atol=1e-5)


def drawn(parameters: list[SamplingParameters], logits: list[torch.Tensor], *, has_kernel: bool) -> list[Any]:
    drawer = Drawer(VOCAB, CPU, has_kernel=has_kernel)
    sequences = [Sequence("r", row, (5, 6, 7), p, frozenset({9}), row) for row, p in enumerate(parameters)]
    told = []
    for _ in range(5):
        records = drawer.draw(sequences, logits).tokens()
        assert records is not None
        for sequence, record in zip(sequences, records, strict=True):
            sequence.append(record)
        told += records
    return told


@pytest.mark.parametrize("changes", [{}, {"network_temperatures": (0.8, 1.2)}], ids=["by the kernel", "by the rule"])
def test_a_drawer_says_the_same_with_and_without_the_kernel(changes: dict[str, Any]) -> None:
    load_kernel()
    logits = list(4.0 * torch.randn(2, 3, VOCAB, generator=torch.Generator().manual_seed(5)))
    settings = {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 3, "min_tokens": 2, **changes}
    parameters = [SamplingParameters.contrastive(alpha, **settings) for alpha in (0.2, 0.5, 0.9)]
    with_it, without = (drawn(parameters, logits, has_kernel=has_kernel) for has_kernel in (True, False))
    for ours, theirs in zip(with_it, without, strict=True):
        assert (ours.token_id, ours.head_size) == (theirs.token_id, theirs.head_size)
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert ours.mixture_logprob == pytest.approx(theirs.mixture_logprob, abs=2e-5)


def test_a_row_gets_the_same_numbers_alone_and_in_a_crowd() -> None:
    load_kernel()
    logits = list(4.0 * torch.randn(2, 6, VOCAB, generator=torch.Generator().manual_seed(6)))
    parameters = [SamplingParameters.contrastive(0.4, seed=row) for row in range(6)]
    together = drawn(parameters, logits, has_kernel=True)[:6]
    for row, expected in enumerate(together):
        drawer = Drawer(VOCAB, CPU, has_kernel=True)
        sequence = Sequence("r", row, (5, 6, 7), parameters[row], frozenset(), 0)
        assert drawer.draw([sequence], [z[row : row + 1] for z in logits]).tokens() == [expected]


def test_equal_tokens_are_taken_in_order_of_id() -> None:
    """Flat logits: greedy takes the first, top-k the first k, and a draw walks ids upwards."""
    load_kernel()
    logits = (torch.zeros(3, 1000), torch.zeros(3, 1000))
    parameters = [
        SamplingParameters.contrastive(0.4, temperature=0.0),
        SamplingParameters.contrastive(0.4, top_k=2, seed=5),
        SamplingParameters.contrastive(0.4, top_p=0.25, seed=6),
    ]
    rules = stack_rules(parameters, 1000)
    numbers = number_rules(parameters, 1000, None, CPU).numbers_BF
    drawn = torch.stack(
        [
            torch.ops.cong.draw_tokens(
                logits, rules.head_log_lambda_B, numbers, torch.tensor([[1] * 3, [2] * 3, [n] * 3]), None, None, None
            )
            for n in range(200)
        ]
    )
    greedy, two, nucleus = drawn[:, :, 0].unbind(-1)
    assert set(greedy.tolist()) == {0.0}
    assert set(two.tolist()) == {0.0, 1.0}
    assert 200 < nucleus.amax() < 250
    torch.testing.assert_close(drawn[0, :, 2], torch.tensor([0.0, -math.log(2), -math.log(250)]).double())


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("network", [0, 1])
def test_logits_that_are_no_numbers_are_told_by_an_empty_head_set(wrong: float, network: int) -> None:
    load_kernel()
    logits = torch.randn(2, 2, 500, generator=torch.Generator().manual_seed(0))
    logits[network, 1, 77] = wrong
    parameters = [SamplingParameters.contrastive(0.4, head_lambda=0.0)] * 2
    numbers = number_rules(parameters, 500, None, CPU).numbers_BF
    record_BR = torch.ops.cong.draw_tokens(
        tuple(logits), torch.full((2,), -math.inf), numbers, torch.zeros(3, 2, dtype=torch.int64), None, None, None
    )
    assert record_BR[:, 1].tolist() == [500, 0]
