"""`cong estimate`: what a configuration takes, before anything is started."""

import argparse
from typing import TYPE_CHECKING

from cong.cli.config import Commands, add_config_options, print_config, resolve_config
from cong.errors import ConfigError

if TYPE_CHECKING:
    from cong.report.tables import Table


def _sampling(arguments: argparse.Namespace) -> int:
    # Here, because sizes are read through torch, and other commands need not wait for it.
    from cong.estimate import SamplingWork, estimate_sampling, machines, sampling_table

    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    _require_counts(arguments)
    work = SamplingWork(
        arguments.num,
        config.sampling_job.num_samples,
        arguments.prompt_tokens,
        arguments.response_tokens,
        arguments.like,
    )
    named = arguments.accelerator or config.estimate.sampler or config.estimate.accelerator
    estimate = estimate_sampling(config, work, machines(_required(named), arguments.devices))
    _print(sampling_table(estimate))
    return 0


def _training(arguments: argparse.Namespace) -> int:
    from cong.estimate import TrainingWork, estimate_training, machines, training_table

    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    _require_counts(arguments)
    most = config.train.batches.max_example_tokens
    length = arguments.prompt_tokens + (arguments.response_tokens or 1)
    if length > most:
        raise ConfigError(
            f"a mean of {length:g} tokens is asked for, and train.batches.max_example_tokens = {most} lets no example "
            "be longer; raise it, or give fewer as --prompt-tokens or --response-tokens"
        )
    responses = most - arguments.prompt_tokens if arguments.response_tokens is None else arguments.response_tokens
    work = TrainingWork(arguments.num, arguments.prompt_tokens, responses, arguments.like)
    named = arguments.accelerator or config.estimate.accelerator
    estimate = estimate_training(config, work, machines(_required(named), arguments.devices))
    _print(training_table(estimate))
    return 0


def _required(accelerator: str) -> str:
    if not accelerator:
        raise ConfigError("no accelerator is named; give --accelerator, such as H100, or set estimate.accelerator")
    return accelerator


def _require_counts(arguments: argparse.Namespace) -> None:
    for name in ("num", "devices", "prompt_tokens", "response_tokens"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}; give more than 0")


def _print(table: "Table") -> None:
    from rich.console import Console

    from cong.report.tables import to_rich

    Console(highlight=False, soft_wrap=True).print(to_rich(table))


def add_estimate_commands(commands: Commands) -> None:
    """Declare `cong estimate ...`."""
    parser = commands.add_parser("estimate", help="GPU hours, memory and disk of a run, before it is started")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, run, unit, help_text in (
        ("sampling", _sampling, "prompts", "what the samples of so many prompts take"),
        ("training", _training, "samples or pairs", "what training on so many examples takes"),
    ):
        action = actions.add_parser(name, help=help_text)
        add_config_options(action)
        action.add_argument("--num", type=int, required=True, metavar="N", help=unit)
        action.add_argument(
            "--accelerator",
            default="",
            metavar="NAME",
            help="such as H100 (that of the configuration); a wrong name is told those that are known",
        )
        action.add_argument("--devices", type=int, default=1, metavar="N", help="how many of them (1)")
        action.add_argument("--prompt-tokens", type=float, default=200.0, metavar="T", help="mean (200)")
        action.add_argument(
            "--response-tokens", type=float, metavar="T", help="mean (as many as the configuration allows)"
        )
        action.add_argument(
            "--like", default="", metavar="FAMILY", help="networks that are not there yet are like this, as Qwen2.5-7B"
        )
        action.set_defaults(run=run)
