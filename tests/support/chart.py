"""Releases of the chart deploy/helm/routershift for the tests, which skip where there is no helm."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy.helm import release

# Releases that no overlay is the like of: by name, the overlay whose recipe and values they have, and further values.
CASES: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {
    ("chart", "rdma"): (
        "multinode",
        {
            "learner": {
                "rdma": {"resource": "rdma/hca", "count": 1, "ipcLock": True},
                "topologyKey": "topology.kubernetes.io/zone",
                "env": {"NCCL_IB_HCA": "mlx5", "NCCL_SOCKET_IFNAME": "eth0"},
            },
            "kueue": {"learnerQueue": "learners", "generationQueue": "generation"},
        },
    ),
    ("chart", "download"): (
        "gpu",
        {
            "model": {
                "gigabytes": 400,
                "download": {
                    "enabled": True,
                    "repository": "allenai/OLMoE-1B-7B-0924-Instruct",
                    "token": {"secret": "hub-token"},
                },
            },
            "pullSecrets": ["registry"],
        },
    ),
    ("chart", "backup"): ("dev", {"backup": {"enabled": True}}),
    ("chart", "routes"): (
        "dev",
        {
            "environments": {"replicas": 1},
            "reward": {"replicas": 1},  # else it is more than the stated node has
            "routes": {
                "parents": [{"name": "public", "namespace": "gateways"}],
                "gateway": {"enabled": True, "hostnames": ["agents.example.org"]},
                "generation": {"enabled": True, "hostnames": ["generation.example.org"]},
            },
        },
    ),
}

# Values that say what the components of deploy/k8s say.
VALUES: dict[str, dict[str, Any]] = {
    "broadcast": {"weightsTransfer": "broadcast"},
    "keda": {"autoscaling": {"enabled": True}},
    "kueue": {"kueue": {"learnerQueue": "learners", "generationQueue": "generation"}},
    "monitoring": {"monitoring": {"scrape": True}},
    "tls": {"tls": {"enabled": True}},
}
EXTERNAL = {
    "redis": {
        "enabled": False,
        "users": False,
        "url": {"secret": "streams"},
        "authority": {"secret": "streams-ca"},
        "sentinel": {"secret": "streams-sentinel", "port": 26379},
        "to": [{"ipBlock": {"cidr": "10.0.0.7/32"}}],
    }
}
GRAFANA = {
    "monitoring": {"scrape": True, "rules": True, "dashboards": True, "labels": {"release": "prometheus"}},
    "routes": {"parents": [{"name": "public"}], "grafana": {"enabled": True, "hostnames": ["grafana.example.org"]}},
}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """helm, whatever it says."""
    try:
        return release.run(*arguments)
    except release.NoHelmError as error:
        pytest.skip(str(error))


def rendered(overlay: str, values: dict[str, Any] | None = None, **options: str) -> list[release.Resource]:
    """As `release.template`; what helm refuses fails the test."""
    try:
        return release.template(overlay, values, **options)
    except release.NoHelmError as error:
        pytest.skip(str(error))


def by_name(resources: list[release.Resource]) -> dict[tuple[str, str], release.Resource]:
    """By kind and name."""
    return {(each["kind"], each["metadata"]["name"]): each for each in resources}
