"""Settings of the lab: the tiny world in which the whole method is reproduced and measured."""

from cong.config.base import Settings


class LabConfig(Settings):
    """Placeholder until the lab lands."""

    seed: int = 0
