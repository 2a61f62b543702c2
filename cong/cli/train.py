"""`cong train`: one training run on this machine, in one process; run again it goes on where it was ended."""

import argparse
import sys
from pathlib import Path

from cong.cli.config import Commands, add_config_options, print_config, resolve_config
from cong.cli.dry_run import print_training_estimate
from cong.errors import ConfigError


def _train(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.output_dir is not None:
        config = config.model_copy(update={"output_dir": arguments.output_dir})
    if arguments.dry_run:
        print_training_estimate(config)
        return print_config(config)
    if config.train.backend != "torch":
        raise ConfigError(
            f"train.backend is {config.train.backend!r}, which needs several processes; submit it as a job, or set "
            "train.backend=torch"
        )
    import torch

    from cong.telemetry import configure_logging
    from cong.train.run import train
    from cong.train.stopping import STOPPED_EXIT_CODE, StopRequest

    configure_logging("INFO")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    with StopRequest() as stop:
        outcome = train(config, stop=stop)
    left_out = ", ".join(f"{name} {number}" for name, number in outcome.counts.items())
    step = outcome.progress.step if outcome.progress else 0
    if not outcome.is_finished:
        print(f"{config.output_dir}: stopped at step {step}; the same command goes on", file=sys.stderr)
        return STOPPED_EXIT_CODE
    print(
        f"{outcome.model_folder}: trained for {step} steps{f' ({left_out})' if left_out else ''}",
        file=sys.stderr,
    )
    return 0


def add_train_command(commands: Commands) -> None:
    """Declare `cong train`."""
    about = "train a network on a stream or on preferences, on this machine"
    more = "It needs a network (train.network.source) and data (stream.location, or train.data). Run again, it goes on."
    parser = commands.add_parser("train", help=about, description=f"{about[0].upper()}{about[1:]}. {more}")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="in place of output_dir; a run that lies there goes on"
    )
    add_config_options(parser)
    parser.set_defaults(run=_train)
