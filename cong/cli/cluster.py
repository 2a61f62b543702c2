"""`cong cluster`: look at deployment files before a cluster is paid for."""

import argparse
from pathlib import Path

from cong.cli.config import Commands
from cong.cluster import check_file
from cong.cluster.check import PLACEHOLDER
from cong.cluster.placement import placement_problems
from cong.config import RunConfig, load_config
from cong.errors import ConfigError


def _check(arguments: argparse.Namespace) -> int:
    wrong = []
    for path in arguments.files:
        try:
            kinds = check_file(path, may_have_placeholders=arguments.template)
            print(f"{path}: {', '.join(kinds)}, nothing wrong found")
        except ConfigError as error:
            wrong.append(str(error))
    if not wrong:
        runs = {path: load_config(RunConfig, [path]) for path in arguments.runs}
        wrong = [problem.message for problem in placement_problems(arguments.files, runs)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return 0


def add_cluster_commands(commands: Commands) -> None:
    """Declare `cong cluster ...`."""
    parser = commands.add_parser("cluster", help="check cluster files, Kubernetes objects and Serve configurations")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check", help="check files without a cluster or a cloud; exit code 2 and everything that is wrong"
    )
    check.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="cluster.yaml, a manifest, or a Serve configuration"
    )
    check.add_argument(
        "--run",
        action="append",
        default=[],
        dest="runs",
        type=Path,
        metavar="FILE",
        help="a run's configuration, whose training workers must have a place; any number of times",
    )
    check.add_argument("--template", action="store_true", help=f"{PLACEHOLDER} may stand where a value is to be put in")
    check.set_defaults(run=_check)
