"""What the actions of `cong stream` share: the stream and the records that a command line names, amounts in words."""

import argparse
import json
import sys
from typing import Any

from rich.console import Console

from cong.config.loading import check
from cong.config.stream import ReadSettings
from cong.errors import StreamError
from cong.stream import Store, open_store
from cong.stream.identity import require_identity


def opened(arguments: argparse.Namespace) -> Store:
    """The stream that is named; refused where there is none."""
    store = named(arguments)
    require_identity(store)
    return store


def named(arguments: argparse.Namespace) -> Store:
    """The place that is named, whatever lies there."""
    options: dict[str, Any] = {}
    for text in arguments.storage_option:
        name, equals, value = text.partition("=")
        if not equals:
            raise StreamError(f"--storage-option {text!r}: write it as NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return open_store(arguments.stream, options)


def read_settings(arguments: argparse.Namespace) -> ReadSettings:
    """The records that are asked for."""
    return check(
        ReadSettings,
        {
            "filter": {
                "kinds": arguments.kind,
                "finish_reasons": arguments.finish_reason,
                "min_tokens": arguments.min_tokens,
                "max_tokens": arguments.max_tokens,
                "min_reward_mean": arguments.min_reward,
                "max_reward_mean": arguments.max_reward,
            },
            "on_damage": "skip" if arguments.skip_damage else "error",
        },
        "command line",
    )


def add_filter_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which records."""
    group = parser.add_argument_group("which records")
    group.add_argument("--kind", action="append", default=[], help="contrastive or plain; may be repeated (all)")
    group.add_argument("--finish-reason", action="append", default=[], help="such as stop; may be repeated (all)")
    group.add_argument("--min-tokens", type=int, default=0, metavar="N", help="length of the completion (0)")
    group.add_argument("--max-tokens", type=int, default=0, metavar="N", help="0 = no limit")
    group.add_argument("--min-reward", type=float, metavar="R", help="lowest implicit reward per token")
    group.add_argument("--max-reward", type=float, metavar="R", help="highest implicit reward per token")
    group.add_argument("--skip-damage", action="store_true", help="leave damaged rows out and name them")


def size_of(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def count_of(number: int, thing: str) -> str:
    """So many of a thing."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def console() -> Console:
    """Where tables go."""
    # A pipe has no width; tables are then as wide as they need.
    return Console() if sys.stdout.isatty() else Console(width=160)
