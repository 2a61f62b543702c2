"""`python -m serve`: a Serve file on a Ray of its own on this machine, until Ctrl-C."""

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cong.cli.parser import Parser
from cong.config import dump_config
from cong.config.serving import IMPORT_PATH
from cong.errors import ConfigError, CongError
from cong.wording import brought_by, told_by_the_machine
from serve.address import require_free
from serve.private import TOKEN, make_private

DEFAULT_FILE = Path(__file__).parent / "config-lab.yaml"

EPILOG = """\
examples:
  python -m serve                                                   the two tiny models that come with the package
  python -m serve --set uses_lab_pair=false \\
      --set models.aligned.source=models/small-aligned \\
      --set models.base.source=models/small                         a pair of your own
  python -m serve --config serve/config.yaml --dry-run              check the cluster's file; nothing is started

Ctrl-C lets requests finish and stops what was started; a second Ctrl-C stops at once. For a cluster that runs already:
  serve deploy serve/config.yaml
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(
        prog="python -m serve",
        description="Serve a pair of models on this machine: starts a Ray of its own, deploys, and waits for Ctrl-C.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_FILE, metavar="FILE", help="Serve file (default: serve/config-lab.yaml)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="one argument of the application, such as models.device=cuda; any number of times",
    )
    parser.add_argument(
        "--application",
        metavar="MODULE:NAME",
        default=IMPORT_PATH,
        help="the builder that the file names, where it is one of your own around serve.app.bind",
    )
    parser.add_argument("--host", help="listen here instead; what other machines can reach needs API keys")
    parser.add_argument("--port", type=int, help="listen on this port instead")
    parser.add_argument("--num-cpus", type=int, help="processors that Ray may count on (default: those that are there)")
    parser.add_argument(
        "--dashboard", action="store_true", help="also start Ray's dashboard, on loopback, with a token"
    )
    parser.add_argument("--start-timeout", type=float, default=600.0, metavar="S", help="longest start (default: 600)")
    parser.add_argument("--verbose", action="store_true", help="show the log lines of the replicas")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what it resolves to, and end")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(argv)
    try:
        with told_by_the_machine():
            return run(options)
    except CongError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # While Ray itself starts or ends; what was started goes with this process.
        print("serve: interrupted", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    with tempfile.TemporaryDirectory(prefix="cong-", ignore_cleanup_errors=True) as folder:
        make_private(Path(folder))
        return run_in(Path(folder), options)


def run_in(folder: Path, options: argparse.Namespace) -> int:
    """Serve until told to stop, with sockets, logs and token in a folder."""
    # Ray reads its environment when it is imported, so not before now.
    with brought_by("serve"):
        from serve.app import actor_options
        from serve.files import read_serve_file
        from serve.local import (
            DASHBOARD_PORT,
            LocalRay,
            deploy,
            describe,
            drain,
            require_room,
            there,
            wait_answering,
            wait_running,
        )

    if not options.start_timeout > 0:
        raise ConfigError(f"--start-timeout is {options.start_timeout:g}; give more than 0 seconds")
    http = {name: value for name, value in (("host", options.host), ("port", options.port)) if value is not None}
    file = read_serve_file(options.config, options.overrides, http, options.application)
    if options.dry_run:
        print(f"# {options.config}: in order; {file.name} would listen at {file.url}")
        print(dump_config(file.args), end="")
        return 0
    require_free(file.schema.http_options.host, file.schema.http_options.port, "give another with --port")
    print(f"starting Ray and {file.name} from {options.config} ...", flush=True)
    told = threading.Event()
    with LocalRay(folder, num_cpus=options.num_cpus, has_dashboard=options.dashboard, is_verbose=options.verbose):
        # After Ray has set its own handlers.
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: told.set())
        require_room(actor_options(file.args.resources, file.args.run()), there())
        deploy(file)

        def leave_if_told(_: str) -> None:
            if told.is_set():
                raise KeyboardInterrupt

        try:
            wait_running(file.name, options.start_timeout, leave_if_told)
            found = describe(file.name)
            wait_answering(file.url, options.start_timeout, leave_if_told)
            for line in summary(found):
                print(line)
            print(first_request(file.url, has_keys=file.args.service.has_keys))
            print(f"logs: {folder}/session_latest/logs/serve")
            if options.dashboard:
                print(f"dashboard: http://127.0.0.1:{DASHBOARD_PORT}, its token is in {folder / TOKEN}")
            print("ready; Ctrl-C drains and stops", flush=True)
            told.wait()
        except KeyboardInterrupt:
            print("stopped before it was ready", flush=True)
        told.clear()
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.default_int_handler)
        print("draining; Ctrl-C again stops at once", flush=True)
        grace_s = max((one.graceful_shutdown_timeout_s for one in _deployments(file)), default=60.0)
        try:
            is_drained = drain(file.name, grace_s)
        except KeyboardInterrupt:
            is_drained = False
    print("stopped" if is_drained else "stopped; requests in flight were cut", flush=True)
    return 0


def _deployments(file: Any) -> list[Any]:
    deployments: list[Any] = file.schema.applications[0].deployments
    return [one for one in deployments if isinstance(one.graceful_shutdown_timeout_s, int | float)]


def summary(found: dict[str, Any]) -> list[str]:
    """What was loaded, a line per network."""
    info = found["info"]
    lines = [f"{info['deployment']}: {len(info['networks'])} network(s), engine {info['backend']}"]
    for network in info["networks"]:
        millions = network["num_parameters"] / 1e6
        lines.append(
            f"  {network['role']:<8} {network['name']} ({network['architecture']}, {millions:,.2f} million parameters, "
            f"fingerprint {network['fingerprint']})"
        )
    memory = f"{found['resident_bytes'] / 2**20:,.0f} MiB of main memory"
    if found["accelerator_bytes"]:
        memory += f", {found['accelerator_bytes'] / 2**20:,.0f} MiB on the accelerator"
    lines.append(f"  memory   {memory}")
    lines.append(f"  stream   {info['stream_location'] or 'nothing is kept'}")
    return lines


def first_request(url: str, *, has_keys: bool) -> str:
    """Two ways to ask for a first sample."""
    header = " -H 'Authorization: Bearer YOUR-KEY'" if has_keys else ""
    key = ", api_key='YOUR-KEY'" if has_keys else ""
    body = '{"prompt": "Sdbgaf=", "parameters": {"max_tokens": 16}}'
    return (
        f"listening at {url}\n"
        f"  curl -s {url}/sample -H 'Content-Type: application/json'{header} -d '{body}'\n"
        f'  python -c "from cong.client import Client; '
        f"print(Client('{url}'{key}).sample('Sdbgaf=').samples[0].record.completion_text)\""
    )


if __name__ == "__main__":
    sys.exit(main())
