"""The HTTP application on a bare ASGI server, without Ray: `python -m bench.uvicorn_process CONFIG`, from the root.

A module of its own, started by its name: beside `bench/serve.py` the package `serve` would not be found.
"""

import sys
from pathlib import Path

import torch
import uvicorn

from cong.config import RunConfig, load_config
from cong.service import open_service
from serve.http import create_app


def main(file: Path) -> None:
    """Serve until told to stop."""
    config = load_config(RunConfig, [file])
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    service = open_service(config, "bench")
    app = create_app(lambda: service, config.service, owns_service=True)
    uvicorn.run(app, host=config.service.host, port=config.service.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
