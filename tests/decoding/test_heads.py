"""Decoding on head sets alone against decoding on the whole vocabulary."""

import random
from typing import Any

import pytest
import torch

from cong.decoding import decode_heads, decode_step, find_heads, stack_rules
from cong.schemas import SamplingParameters

VOCAB = 300
ROWS = 24


def random_rules(generator: random.Random, num_networks: int) -> list[SamplingParameters]:
    """Rules of every kind, none of which keeps the whole vocabulary."""
    weights = {1: (1.0,), 2: (1.0, -0.6), 3: (1.0, 0.8, -0.8)}[num_networks]
    choices: list[dict[str, Any]] = [
        {
            "weights": weights,
            "head_lambda": generator.choice([0.05, 0.1, 0.5, 1.0]),
            "temperature": generator.choice([0.0, 0.7, 1.0]),
            "top_p": generator.choice([0.5, 0.9, 1.0]),
            "top_k": generator.choice([0, 3, 40]),
            "repetition_penalty": generator.choice([1.0, 1.3]),
            "penalty_rule": generator.choice(["additive", "multiplicative", "reference"]),
            "exempt_token_ids": generator.choice([(), (1, 7)]),
            "seed": generator.randrange(1000),
        }
        for _ in range(ROWS)
    ]
    return [SamplingParameters.model_validate(choice) for choice in choices]


@pytest.mark.parametrize("num_networks", [1, 2, 3])
def test_the_head_sets_alone_give_the_same_tokens_and_records(num_networks: int) -> None:
    generator = torch.Generator().manual_seed(num_networks)
    for trial in range(20):
        # Steep enough that every head set of lambda 0.05 fits into 64 columns.
        logits = tuple(4.0 * torch.randn(ROWS, VOCAB, generator=generator) for _ in range(num_networks))
        rules = stack_rules(random_rules(random.Random(trial), num_networks), VOCAB)
        rows, position = torch.arange(ROWS), torch.full((ROWS,), trial)
        is_seen = torch.rand(ROWS, VOCAB, generator=generator) < 0.3
        banned = torch.rand(ROWS, VOCAB, generator=generator) < 0.1
        heads = find_heads(logits, rules.head_log_lambda_B, 64)
        assert heads.sizes_B.max() <= 64
        ours = decode_heads(heads, rules, rows, position, VOCAB, is_seen, banned)
        theirs = decode_step(logits, rules, rows, position, is_seen, banned)
        assert torch.equal(ours.token_B, theirs.token_B)
        assert torch.equal(ours.head_size_B, theirs.head_size_B)
        assert torch.equal(ours.num_floored_B, theirs.num_floored_B)
        torch.testing.assert_close(ours.logprobs_BK, theirs.logprobs_BK)
        torch.testing.assert_close(ours.mixture_logprob_B, theirs.mixture_logprob_B)


def test_a_head_set_that_does_not_fit_is_told_by_its_size() -> None:
    logits = (torch.zeros(2, VOCAB),)
    heads = find_heads(logits, torch.tensor([-1.0, -1.0]), 16)
    assert heads.sizes_B.tolist() == [VOCAB, VOCAB]
