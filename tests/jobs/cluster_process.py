"""A Ray with a dashboard in a process of its own: says where it can be reached, and ends with its standard input.

`python -m tests.jobs.cluster_process FOLDER PORT` is that process.
"""

import json
import logging
import sys

import ray


def main(folder: str, port: int) -> None:
    """Run until standard input ends."""
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        object_store_memory=150 << 20,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
