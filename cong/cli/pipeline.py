"""`cong pipeline`: the whole method as stages on this machine; run again, it makes what is missing or has changed."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cong.cli.config import Commands, add_config_options, print_config, resolve_config
from cong.cli.dry_run import print_estimate
from cong.config import RunConfig, load_config
from cong.wording import require_installed

if TYPE_CHECKING:
    from cong.pipeline import Board, Executor, Outcome, Standing


def run_here(config: RunConfig, executor: "Executor | None" = None, until: str = "") -> "Outcome":
    """Run a pipeline until it is done, or until this process is asked to stop."""
    import torch

    from cong.pipeline import Subprocess, run_pipeline
    from cong.telemetry import configure_logging
    from cong.train.stopping import StopRequest

    require_installed("report", "matplotlib", "jinja2")
    configure_logging("INFO")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if executor is None and config.pipeline.executor == "subprocess":
        executor = Subprocess()
    with StopRequest() as stop:
        return run_pipeline(config, executor, stop=stop, until=until)


def tell(outcome: "Outcome") -> int:
    """Say how a run ended; returns the exit code."""
    from cong.train.stopping import STOPPED_EXIT_CODE

    made = f"{len(outcome.ran)} stages ran ({', '.join(outcome.ran) or 'none'})"
    print(f"{made}, {len(outcome.kept)} were complete", file=sys.stderr)
    if not outcome.is_finished:
        print("stopped as asked; the same command goes on", file=sys.stderr)
        return STOPPED_EXIT_CODE
    if outcome.report is not None:
        print(f"report: {outcome.report}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    return print_dry_run(config) if arguments.dry_run else tell(run_here(config, until=arguments.until))


def print_forecast(config: RunConfig) -> None:
    """What every stage takes at most, as comments; nothing that the configuration names has to be there."""
    from cong.pipeline.forecast import Outlook
    from cong.pipeline.tables import forecast_table

    print_estimate(lambda: forecast_table(Outlook.of(config).all(), config.pipeline.methods))


def print_dry_run(config: RunConfig) -> int:
    """What the run takes, and the configuration that it has."""
    print_forecast(config)
    return print_config(config)


def print_plan(config: RunConfig) -> int:
    """A table of what would run and why, and of how much that is; does nothing."""
    from cong.pipeline import Board
    from cong.pipeline.forecast import Outlook

    board = Board(config)
    standings = board.survey()
    due = {one.stage.name for one in standings if one.state != "done"}
    outlook = Outlook.of_board(board)
    rows = [(one, outlook.forecast(one.stage).text if one.stage.name in due else "") for one in standings]
    _show("Plan", board, rows, "amount")
    for line in board.causes(standings):
        print(line)
    if not due:
        print("everything is done; a run would do nothing")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    return print_dry_run(config) if arguments.dry_run else print_plan(config)


def _status(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_dry_run(config)
    from cong.pipeline import Board
    from cong.pipeline.progress import progress_of

    board = Board(config)
    standings = board.survey()
    rows = [(one, f"{one.marker.seconds:,.1f} s" if one.marker else progress_of(board, one)) for one in standings]
    _show("Status", board, rows, "progress")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    from cong.pipeline.pruning import Leftover, leftovers, prune

    config = resolve_config(arguments)
    others = [load_config(RunConfig, [*arguments.config, file], arguments.overrides) for file in arguments.keep]
    found: list[Leftover] = leftovers(config, others) if arguments.dry_run else prune(config, others)
    for one in found:
        print(f"{one.folder}: {one.num_bytes / 1e6:,.1f} MB, {one.reason}")
    size = sum(one.num_bytes for one in found) / 1e6
    print(f"{'would remove' if arguments.dry_run else 'removed'} {len(found)} folders, {size:,.1f} MB")
    return 0


def _show(title: str, board: "Board", rows: "list[tuple[Standing, str]]", last: str) -> None:
    from rich.console import Console

    from cong.report import Column, Table, to_rich

    columns = [Column("stage", "left"), Column("state", "left"), Column("why", "left"), Column(last, "left")]
    table = Table(
        f"{title} of {', '.join(board.config.pipeline.methods)} in {board.root}",
        columns,
        [[one.stage.name, one.state, one.reason, text] for one, text in rows],
    )
    Console().print(to_rich(table))


def add_until(parser: argparse.ArgumentParser) -> None:
    """`--until`, the same here and on a cluster."""
    parser.add_argument("--until", default="", metavar="STAGE", help="make this stage and what it needs, and stop")


def add_pipeline_commands(commands: Commands) -> None:
    """Declare `cong pipeline ...`."""
    parser = commands.add_parser("pipeline", help="the whole method, from a weak pair to a judged strong model")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, run, about in (
        ("run", _run, "make what is missing or has changed, and report"),
        ("plan", _plan, "show what would run, why, and how much it is"),
        ("status", _status, "show what is done and how far the rest is"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        add_config_options(action)
        action.set_defaults(run=run)
        if name == "run":
            add_until(action)
    about = "remove what no recipe in use needs"
    action = actions.add_parser("prune", help=about, description=about)
    add_config_options(action, dry_run="list what would be removed, and remove nothing")
    action.add_argument(
        "--keep",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="settings over the others whose results are wanted too; any number of times",
    )
    action.set_defaults(run=_prune)
