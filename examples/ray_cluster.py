"""The same search on a Ray cluster: start one with `ray start --head`, join it with

    RAY_CLUSTER=auto python examples/ray_cluster.py

Machines of the cluster that do not see the folder RUN are sent what they need of it. Without RAY_CLUSTER this
machine is used.
"""

import os

import autocompress as ac

result = ac.search(
    "digits",
    trials=int(os.environ.get("EXAMPLE_TRIALS", "24")),
    epochs=6,
    workers=2,
    ray_address=os.environ.get("RAY_CLUSTER"),
    out="runs/on-a-cluster",
)
print(len(result.front), "points in", result.out)
