"""What every row of a batch asks for, as tensors: one row per sequence, so that no request depends on another.

Legend: B rows, K networks, V tokens. Knows torch only; `DrawRule` says which attributes it reads, so that whoever
keeps the parameters need not be known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class DrawRule(Protocol):
    """Sampling parameters of one sequence, as far as drawing a token is concerned."""

    @property
    def weights(self) -> tuple[float, ...]: ...
    @property
    def network_temperatures(self) -> tuple[float, ...]: ...
    @property
    def head_lambda(self) -> float: ...
    @property
    def logprob_floor(self) -> float: ...
    @property
    def exempt_token_ids(self) -> tuple[int, ...]: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def penalty_rule(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Rules:
    """Rules of B rows. An optional part is None where no row asks for it, so that it costs nothing."""

    weights_BK: Tensor
    head_log_lambda_B: Tensor
    """ln(lambda); -inf keeps every token."""
    floor_B: Tensor
    temperature_B: Tensor
    """1 in greedy rows."""
    seed_B: Tensor
    is_greedy_B: Tensor | None = None
    network_temperature_BK: Tensor | None = None
    exempt_BV: Tensor | None = None
    """True where every network is taken to agree with the first."""
    top_k_B: Tensor | None = None
    """V = disabled in this row."""
    top_p_B: Tensor | None = None
    """1 = disabled in this row."""
    penalty_B: Tensor | None = None
    """1 = disabled in this row."""
    is_multiplicative_B: Tensor | None = None
    is_shifted_B: Tensor | None = None
    """True where the published code's shift is added before the penalty; None where no row has a penalty."""


def stack_rules(rules: Sequence[DrawRule], vocab_size: int, device: torch.device | str = "cpu") -> Rules:
    """The rules of several sequences as one batch."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    has_temperatures = any(any(t != 1.0 for t in rule.network_temperatures) for rule in rules)
    has_penalty = any(rule.repetition_penalty != 1.0 for rule in rules)
    exempt_BV = None
    if any(rule.exempt_token_ids for rule in rules):
        exempt_BV = torch.zeros(len(rules), vocab_size, dtype=torch.bool, device=device)
        for row, rule in enumerate(rules):
            exempt_BV[row, list(rule.exempt_token_ids)] = True
    return Rules(
        weights_BK=torch.tensor([rule.weights for rule in rules], dtype=torch.float32, device=device),
        head_log_lambda_B=column([rule.head_lambda for rule in rules], torch.float64).log().float(),
        floor_B=column([rule.logprob_floor for rule in rules]),
        temperature_B=column([rule.temperature or 1.0 for rule in rules]),
        seed_B=column([rule.seed for rule in rules], torch.int64),
        is_greedy_B=(
            column([rule.temperature == 0.0 for rule in rules], torch.bool)
            if any(rule.temperature == 0.0 for rule in rules)
            else None
        ),
        network_temperature_BK=(
            torch.tensor(
                [rule.network_temperatures or (1.0,) * len(rule.weights) for rule in rules],
                dtype=torch.float32,
                device=device,
            )
            if has_temperatures
            else None
        ),
        exempt_BV=exempt_BV,
        top_k_B=(
            column([min(rule.top_k, vocab_size) or vocab_size for rule in rules], torch.int64)
            if any(rule.top_k for rule in rules)
            else None
        ),
        top_p_B=column([rule.top_p for rule in rules]) if any(rule.top_p < 1.0 for rule in rules) else None,
        penalty_B=column([rule.repetition_penalty for rule in rules]) if has_penalty else None,
        is_multiplicative_B=(
            column([rule.penalty_rule != "additive" for rule in rules], torch.bool) if has_penalty else None
        ),
        is_shifted_B=(
            column([rule.penalty_rule == "reference" for rule in rules], torch.bool) if has_penalty else None
        ),
    )
