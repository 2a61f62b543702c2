"""Drawing on a CPU by the compiled kernel, which finds each row's head set and looks at it alone. Knows tensors only.

Says what `cong.decoding` says. Legend: K networks, B rows, V tokens.
"""

import torch
from torch import Tensor

from cong.engine.rule_numbers import RuleNumbers


def draw_on_cpu(
    logits: tuple[Tensor, ...],
    head_log_lambda_B: Tensor,
    rules: RuleNumbers,
    coordinates_3B: Tensor,
    is_seen_BV: Tensor | None,
    banned_BV: Tensor | None,
) -> Tensor:
    """Token, size of the head set, log-prob under the mixture and under each network, float64 [B, 3 + K].

    The coordinates are seed, sample index and position of each draw. Rows of logits that are not numbers have size 0.
    """
    if len({logits_BV.dtype for logits_BV in logits}) > 1:  # some through operators of our own, in float32
        logits = tuple(logits_BV.float() for logits_BV in logits)
    record_BR: Tensor = torch.ops.cong.draw_tokens(
        [logits_BV if logits_BV.stride(1) == 1 else logits_BV.contiguous() for logits_BV in logits],
        head_log_lambda_B,
        rules.numbers_BF,
        coordinates_3B,
        is_seen_BV,
        banned_BV,
        rules.exempt_BV,
    )
    return record_BR
