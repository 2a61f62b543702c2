"""`cong config`: look at a configuration before anything runs, and the options that every configured command shares."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel

from cong.config import RunConfig, dump_config, load_config
from cong.config.train import ObjectiveSettings
from cong.errors import ConfigError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command is added to."""


def add_config_options(
    parser: argparse.ArgumentParser, dry_run: str = "print the resolved configuration and stop"
) -> None:
    """`--config`, `--set` and `--dry-run`, the same for every command that reads a configuration."""
    parser.add_argument(
        "--config", action="append", default=[], type=Path, metavar="FILE", help="YAML file; later ones win"
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=C", help="one setting, over all files"
    )
    parser.add_argument("--dry-run", action="store_true", help=dry_run)


def resolve_config(arguments: argparse.Namespace) -> RunConfig:
    """The configuration that a command's options describe."""
    return load_config(RunConfig, arguments.config, arguments.overrides)


def print_config(config: RunConfig) -> int:
    """What `--dry-run` does instead of the work."""
    sys.stdout.write(dump_config(config))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    config = load_config(RunConfig, arguments.files, arguments.overrides)
    if arguments.dry_run:
        return print_config(config)
    _check_objectives(config, " + ".join(map(str, arguments.files)))
    print(f"{' + '.join(map(str, arguments.files))}: every setting is known and within its bounds")
    return 0


def _check_objectives(config: RunConfig, origin: str) -> None:
    named = list(_objectives(config, RunConfig()))
    if not named:
        return
    # Names and parameters are known where methods are written, which costs the seconds that torch takes to load.
    from cong.objectives import objective

    wrong = []
    for where, settings in named:
        try:
            objective(settings.name, **settings.parameters)
        except ConfigError as error:
            wrong.append(f"{where}: {error}")
    if wrong:
        raise ConfigError("\n  ".join([f"{origin}: {len(wrong)} wrong setting(s)", *wrong]))


def _objectives(section: BaseModel, shipped: object, where: str = "") -> Iterator[tuple[str, ObjectiveSettings]]:
    """The objectives that a configuration names otherwise than by default, each with its place."""
    if isinstance(section, ObjectiveSettings):
        if section != shipped:
            yield where, section
        return
    for name in type(section).model_fields:
        inner = getattr(section, name)
        if isinstance(inner, BaseModel):
            yield from _objectives(inner, getattr(shipped, name, None), f"{where}.{name}" if where else name)


def _reference(arguments: argparse.Namespace) -> int:
    from cong.config.reference import reference

    sys.stdout.write(reference())
    return 0


def add_config_commands(commands: Commands) -> None:
    """Declare `cong config ...`."""
    parser = commands.add_parser("config", help="check configuration files and print what they resolve to")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="check files; exit code 2 and the wrong keys' names if they are wrong")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML file; later ones win")
    check.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=C", help="one setting, over all files"
    )
    check.add_argument("--dry-run", action="store_true", help="print the resolved configuration")
    check.set_defaults(run=_check)
    about = "print every setting with type, bounds, default and meaning, as Markdown"
    actions.add_parser("reference", help=about, description=about).set_defaults(run=_reference)
