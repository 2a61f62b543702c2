"""The `cong` command: local work on files and folders. Knows no Ray, no HTTP server, and nothing of jobs.

Every command is one function that takes the parsed arguments and returns the exit code; its options are declared
beside it. What a user got wrong ends in one line on stderr and exit code 2, without a traceback.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from cong import __version__
from cong.errors import CongError
from cong.wording import told_by_the_machine

BROKEN_PIPE = 141
"""Exit code, as a shell gives it to what a broken pipe has ended."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    # Here, so that a Ctrl-C while all of it is read is told in one line as well.
    from cong.cli.cluster import add_cluster_commands
    from cong.cli.config import add_config_commands
    from cong.cli.estimate import add_estimate_commands
    from cong.cli.evaluate import add_evaluate_command
    from cong.cli.lab import add_lab_commands
    from cong.cli.look import add_look_command
    from cong.cli.parser import Parser
    from cong.cli.pipeline import add_pipeline_commands
    from cong.cli.sample import add_sample_command
    from cong.cli.stream import add_stream_commands
    from cong.cli.train import add_train_command

    parser: argparse.ArgumentParser = Parser(
        prog="cong",
        description="Contrastive weak-to-strong generation and training, from the command line.",
        epilog="A service: python -m serve.http, or python -m serve on Ray. Jobs on Ray: python -m jobs.sample, "
        "jobs.train, jobs.evaluate, jobs.pipeline.",
    )
    parser.add_argument("--version", action="version", version=f"cong {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    add_config_commands(commands)
    add_look_command(commands)
    add_sample_command(commands)
    add_evaluate_command(commands)
    add_lab_commands(commands)
    add_stream_commands(commands)
    add_cluster_commands(commands)
    add_estimate_commands(commands)
    add_train_command(commands)
    add_pipeline_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        arguments = build_parser().parse_args(argv)
        run = cast(Callable[[argparse.Namespace], int], arguments.run)
        with told_by_the_machine():
            return run(arguments)
    except CongError as error:
        print(f"cong: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read along, such as `head`, has enough; what is still to be flushed goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("cong: interrupted", file=sys.stderr)
        return 130
