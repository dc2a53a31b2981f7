"""The metrics table and the registry say the same."""

import importlib
import re
from pathlib import Path

from prometheus_client import REGISTRY

from shared.settings import SERVICES

_SHARED = (
    "services.environments.gateway.metrics",
    "shared.process.metrics",
    "shared.rpc.access",
    "shared.streams.metrics",
    "shared.tracing.metrics",
    "shared.tracking.recording",
)  # have metrics of their own


def test_the_table_is_the_registry(repository: Path) -> None:
    for module in (*(f"services.{service}.metrics" for service in SERVICES), *_SHARED):
        importlib.import_module(module)
    registered = {}
    for family in REGISTRY.collect():
        if family.name.startswith("routershift_"):
            suffix = "_total" if family.type == "counter" else ""
            registered[family.name + suffix] = (family.type, family.documentation)
    documented = {}
    for row in (repository / "docs/reference/metrics.md").read_text().splitlines():
        if match := re.match(r"\| `(routershift_\w+)` \| (\w+) \|(.*?)\| (.+) \|$", row):
            documented[match[1]] = (match[2], set(re.findall(r"(?:^ |; )`(\w+)`", match[3])))
    assert documented.keys() == registered.keys()
    assert {name: kind for name, (kind, _) in documented.items()} == {n: kind for n, (kind, _) in registered.items()}
    collectors = {
        name: set(getattr(collector, "_labelnames", ()))
        for collector, names in REGISTRY._collector_to_names.items()
        for name in names
    }
    assert {name: labels for name, (_, labels) in documented.items()} == {name: collectors[name] for name in documented}
