"""Auxiliary confidence for classes as released for binary tasks, and the product target beside it.

Differs from the token form in how the student's own prediction is hardened: a threshold makes the shares of the
classes match those of the weak labels. Legend: N examples of a logical batch, C classes (2 for the threshold).
"""

import torch
from torch import Tensor

from cong.objectives.soft_labels import cross_entropy


def class_threshold(student_probs_N2: Tensor, weak_probs_N2: Tensor) -> Tensor:
    """The probability of class 0 from which on the student's prediction counts as class 0.

    It is the quantile of the student's class 0 at the weak labels' mean of class 1, so it belongs to a whole logical
    batch: gather both arguments over ranks and micro-batches first, and hand the one number to all of them.
    """
    return torch.quantile(student_probs_N2[:, 0].detach(), weak_probs_N2[:, 1].mean())


def logconf_losses(
    logits_N2: Tensor, weak_probs_N2: Tensor, *, coefficient: float, threshold: float | Tensor
) -> Tensor:
    """Cross-entropy [N] to (1 - c) weak labels + c own predictions hardened at the threshold.

    The released behaviour takes c from `released_ramp(progress, 0.5, 0.1)`, the corrected one from `linear_ramp`.
    """
    logprobs_N2 = torch.log_softmax(logits_N2, -1)
    is_class_0_N = logprobs_N2[:, 0].detach().exp() >= threshold
    hard_N2 = torch.stack([is_class_0_N, ~is_class_0_N], -1).to(weak_probs_N2)
    return cross_entropy((1 - coefficient) * weak_probs_N2 + coefficient * hard_N2, logprobs_N2)


def product_target(
    logits_NC: Tensor, weak_probs_NC: Tensor, *, student_power: float = 1.0, weak_power: float = 1.0
) -> Tensor:
    """Target proportional to p_student^student_power * p_weak^weak_power, detached."""
    scores_NC = student_power * torch.log_softmax(logits_NC.detach(), -1) + weak_power * weak_probs_NC.log()
    return torch.softmax(scores_NC, -1)
