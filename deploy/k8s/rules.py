"""Writes components/monitoring/prometheus-rules.yaml from deploy/prometheus/rules, for the Prometheus operator.

kustomize reads no files beside its own, so what Prometheus is given stands there once more, in the operator's words.
"""

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
WRITTEN = HERE / "components" / "monitoring" / "prometheus-rules.yaml"
_HEAD = "# Written by deploy/k8s/rules.py from deploy/prometheus/rules.\n"


def prometheus_rule() -> dict[str, Any]:
    """All groups of all rule files, in the order of their names (monitoring.coreos.com/v1)."""
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "routershift"},
        "spec": {"groups": groups},
    }


def main() -> None:
    WRITTEN.write_text(_HEAD + yaml.safe_dump(prometheus_rule(), sort_keys=False, width=120))


if __name__ == "__main__":
    main()
