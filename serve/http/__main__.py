"""`python -m serve.http`: the service on this machine, one process, without Ray."""

import argparse
import sys
from collections.abc import Sequence

from cong.cli.config import add_config_options, print_config, resolve_config
from cong.cli.parser import Parser
from cong.errors import CongError
from cong.service import KeyRing, open_service
from cong.telemetry import configure_logging
from cong.wording import brought_by, told_by_the_machine
from serve.address import require_free

_SHUTDOWN_MARGIN_S = 5
"""What the server waits beyond the service's own drain before it closes connections."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop."""
    parser = Parser(prog="python -m serve.http", description="answer over HTTP, without Ray")
    parser.add_argument("--writer", default="http", metavar="ID", help="who writes to the stream: one at a time")
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON")
    add_config_options(parser)
    parsed = parser.parse_args(arguments)
    configure_logging(json=parsed.log_json)
    try:
        with told_by_the_machine():
            return _serve(parsed)
    except CongError as error:
        print(f"cong: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cong: interrupted", file=sys.stderr)
        return 130


def _serve(parsed: argparse.Namespace) -> int:
    with brought_by("serve"):
        import uvicorn

        from serve.http.app import create_app
    config = resolve_config(parsed)
    if parsed.dry_run:
        return print_config(config)
    # First what fails fast.
    require_free(config.service.host, config.service.port, "set service.port to another")
    keys = KeyRing(config.service.api_keys_file, config.service.api_keys_env, config.service.api_keys_reload_s)
    if config.num_threads:
        import torch

        torch.set_num_threads(config.num_threads)
    service = open_service(config, parsed.writer)
    app = create_app(lambda: service, config.service, owns_service=True, keys=keys)
    uvicorn.run(
        app,
        host=config.service.host,
        port=config.service.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(config.service.drain_s) + _SHUTDOWN_MARGIN_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
