"""`cong evaluate`: judge models on held-out prompts; run again after a kill, it continues."""

import argparse

from cong.cli.config import Commands, add_config_options, print_config, resolve_config
from cong.config import RunConfig
from cong.wording import require_installed


def run_evaluation(config: RunConfig) -> int:
    """Evaluate, leave the files, and show the tables."""
    require_installed("report", "matplotlib", "jinja2")
    import torch
    from rich.console import Console

    from cong.evaluation import evaluate, write_evaluation
    from cong.evaluation.tables import terminal_tables
    from cong.report import to_rich
    from cong.telemetry import configure_logging

    configure_logging("WARNING")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    evaluation = evaluate(config)
    files = write_evaluation(evaluation, config)
    console = Console()
    for table in terminal_tables(evaluation.result):
        console.print(to_rich(table))
    for name, path in files.items():
        console.print(f"{name}: {path.resolve()}", highlight=False, soft_wrap=True)
    return 0


def print_plan(config: RunConfig) -> int:
    """What will be done, as comments above the resolved configuration, which loads to the same value."""
    from cong.evaluation import plan

    for line in plan(config):
        print(f"# {line}")
    return print_config(config)


def _evaluate(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    return print_plan(config) if arguments.dry_run else run_evaluation(config)


def add_evaluate_command(commands: Commands) -> None:
    """Declare `cong evaluate`."""
    parser = commands.add_parser("evaluate", help="judge models on held-out prompts, and report what came out")
    add_config_options(parser)
    parser.set_defaults(run=_evaluate)
