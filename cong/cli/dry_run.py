"""What `--dry-run` says of a run beside its configuration: its estimate, as comments, so that it loads."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from cong.config import RunConfig
from cong.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from cong.report import Table

_WIDTH = 150


def print_estimate(make: "Callable[[], Table]") -> None:
    """A table as comments of YAML; where it cannot be made, the reason."""
    from rich.console import Console

    from cong.report import to_rich

    try:
        table = make()
    except (ConfigError, MissingExtra) as error:
        print(f"# What it takes is not known: {error}")
        return
    text = io.StringIO()
    Console(file=text, width=_WIDTH, highlight=False).print(to_rich(table))
    for line in text.getvalue().splitlines():
        print(f"# {line}".rstrip())


def print_sampling_estimate(config: RunConfig, *, num_samples: int | None = None, is_served: bool) -> None:
    """What sampling takes, by a service or by this process."""

    def make() -> "Table":
        from cong.estimate import sampling_table
        from cong.estimate.planned import planned_sampling

        return sampling_table(planned_sampling(config, num_samples, is_served=is_served))

    print_estimate(make)


def print_training_estimate(config: RunConfig) -> None:
    """What training takes."""

    def make() -> "Table":
        from cong.estimate import training_table
        from cong.estimate.planned import planned_training

        return training_table(planned_training(config))

    print_estimate(make)
