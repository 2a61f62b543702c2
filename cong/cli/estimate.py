"""`cong estimate`: what a configuration takes, before anything is started."""

import argparse
from typing import TYPE_CHECKING

from rich.console import Console

from cong.cli.config import add_config_options, print_config, resolve_config
from cong.estimate import (
    ACCELERATORS,
    SamplingWork,
    TrainingWork,
    estimate_sampling,
    estimate_training,
    machines,
    sampling_table,
    training_table,
)
from cong.report.tables import to_rich

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _sampling(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    work = SamplingWork(
        arguments.num,
        config.sampling_job.num_samples,
        arguments.prompt_tokens,
        arguments.response_tokens,
        arguments.like,
    )
    estimate = estimate_sampling(config, work, machines(arguments.accelerator, arguments.devices))
    Console(highlight=False, soft_wrap=True).print(to_rich(sampling_table(estimate)))
    return 0


def _training(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    length = config.train.batches.max_example_tokens - arguments.prompt_tokens
    responses = length if arguments.response_tokens is None else arguments.response_tokens
    work = TrainingWork(arguments.num, arguments.prompt_tokens, responses, arguments.like)
    estimate = estimate_training(config, work, machines(arguments.accelerator, arguments.devices))
    Console(highlight=False, soft_wrap=True).print(to_rich(training_table(estimate)))
    return 0


def add_estimate_commands(commands: "Commands") -> None:
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
        action.add_argument("--accelerator", required=True, metavar="NAME", help=", ".join(ACCELERATORS))
        action.add_argument("--devices", type=int, default=1, metavar="N", help="how many of them (1)")
        action.add_argument("--prompt-tokens", type=float, default=200.0, metavar="T", help="mean (200)")
        action.add_argument(
            "--response-tokens", type=float, metavar="T", help="mean (as many as the configuration allows)"
        )
        action.add_argument(
            "--like", default="", metavar="FAMILY", help="networks that are not there yet are like this, as Qwen2.5-7B"
        )
        action.set_defaults(run=run)
