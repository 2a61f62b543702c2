"""The rules by which rows draw as the kernels read them: numbers in an order that C++ and Triton know.

Legend: B rows, F numbers of a rule, V tokens.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
from torch import Tensor

from cong.decoding import DrawRule
from cong.engine.transfer import to_device

_PENALTY_RULES = {"additive": 0.0, "multiplicative": 1.0, "reference": 2.0}


@dataclass(frozen=True)
class RuleNumbers:
    """The rules of B rows as the kernels read them."""

    numbers_BF: Tensor
    has_top: bool
    """Whether any row asks for top-k or top-p."""
    exempt_BV: Tensor | None


def number_rules(
    rules: Ordered[DrawRule], vocab_size: int, exempt_BV: Tensor | None, device: torch.device
) -> RuleNumbers:
    """The rules of several sequences; none of them has a temperature for a single network."""
    rows = [
        (
            *(rule.logprob_floor, rule.temperature, float(rule.top_k or vocab_size), rule.top_p),
            *(rule.repetition_penalty, _PENALTY_RULES[rule.penalty_rule], *rule.weights),
        )
        for rule in rules
    ]
    return RuleNumbers(
        numbers_BF=to_device(torch.tensor(rows, dtype=torch.float32), device),
        has_top=any(rule.top_k or rule.top_p < 1.0 for rule in rules),
        exempt_BV=exempt_BV,
    )
