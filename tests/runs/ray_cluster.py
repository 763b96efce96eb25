"""A Ray cluster of one processor: prints its address, and adds a machine for each line that it reads."""

import os
import shutil
import sys
import tempfile

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    folder = tempfile.mkdtemp(prefix="ray-")  # not pytest's: paths of sockets must be short
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
    )
    try:
        print(cluster.address, flush=True)
        for _ in sys.stdin:
            cluster.add_node(num_cpus=1)
            print("added", flush=True)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
