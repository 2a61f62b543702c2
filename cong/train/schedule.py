"""The learning rate of each optimiser step: a pure function of the step's number."""

import math

from cong.config.train import ScheduleSettings


def num_warmup_steps(settings: ScheduleSettings, num_steps: int) -> int:
    """Steps in which the rate climbs to its full value."""
    if settings.num_warmup_steps is not None:
        return settings.num_warmup_steps
    return math.ceil(settings.warmup_share * num_steps)


def learning_rate_share(settings: ScheduleSettings, step: int, num_steps: int) -> float:
    """Share of the full learning rate at a step counted from 0: linear warm-up, then the shape to its final share.

    The last step of the warm-up and the first after it have the full rate, and step `num_steps`, which is not trained
    any more, would have the final share: each step trains at the rate with which its part of the fall begins.
    """
    num_warmup = num_warmup_steps(settings, num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    final = settings.final_share
    if settings.shape == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 if settings.shape == "constant" else final + (1.0 - final) * (1.0 - progress)
