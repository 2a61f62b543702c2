"""A Ray cluster of several raylets on this machine; commands come on standard input, answers go to standard output.

`python -m tests.jobs.machines_process FOLDER` is that process. It ends with its standard input.
"""

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

STORE_BYTES = 100 << 20


def main(folder: str) -> None:
    """A head without work of its own, and two machines."""
    head: dict[str, Any] = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "temp_dir": f"{folder}/ray",
        "node_ip_address": "127.0.0.1",
    }
    machine: dict[str, Any] = {
        "num_cpus": 1,
        "resources": {"trainer": 1},
        "object_store_memory": STORE_BYTES,
        "node_ip_address": "127.0.0.1",
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    machines = [cluster.add_node(**machine) for _ in range(2)]
    for line in sys.stdin:
        command = line.strip()
        if command == "lose":
            cluster.remove_node(machines.pop(), allow_graceful=False)
        elif command == "add":
            machines.append(cluster.add_node(**machine))
        print(json.dumps(cluster.address), flush=True)
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1])
