"""Prometheus, Alertmanager and the dashboards: each file by the tool that reads it, and each metric by the table."""

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from deploy.grafana.write import DASHBOARDS, FOLDER
from services.curriculum.settings import CurriculumSettings
from services.environments.settings import EnvironmentsSettings
from services.generation.settings import GenerationSettings
from services.learner.settings import LearnerSettings
from services.reward.settings import RewardSettings
from shared.settings import RunSettings, ServerSettings, StreamSettings
from shared.table import Table

SERVERS: dict[str, type[ServerSettings]] = {
    "curriculum": CurriculumSettings,
    "environments": EnvironmentsSettings,
    "generation": GenerationSettings,
    "learner": LearnerSettings,
    "reward": RewardSettings,
}
DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
RULE_TESTS = sorted((DEPLOY / "prometheus/tests").glob("*.yml"))

# Of others: what Prometheus and its Python client make, and vLLM in the process of generation.
FOREIGN = {
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate"},
    "process_start_time_seconds": {"job", "instance"},
    "vllm:prefix_cache_hits_total": set[str](),
    "vllm:prefix_cache_queries_total": set[str](),
}
SCRAPED = {"job", "instance", "namespace", "run"}  # labels of every series: of the scrape, and of the metrics port
WORDS = {"and", "or", "unless", "offset", "bool"}


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing: apt-get install {package}")
    return path


def check(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Metric:
    kind: str
    labels: dict[str, set[str]]  # the values of each, where the table names them


NO_METRIC = Metric("", {})


def table() -> dict[str, Metric]:
    """docs/reference/metrics.md, by the names that Prometheus stores."""
    found = {}
    for row in (DEPLOY.parent / "docs/reference/metrics.md").read_text().splitlines():
        if match := re.match(r"\| `(routershift_\w+)` \| (\w+) \|(.*?)\| .+ \|$", row):
            labels = {
                label: {value.strip() for value in values.split(",") if re.fullmatch(r"\s*\w+\s*", value)}
                for label, values in re.findall(r"`(\w+)`(?::([^;]*))?", match[3])
            }
            parts = ("_bucket", "_sum", "_count") if match[2] == "histogram" else ("",)
            for part in parts:
                found[match[1] + part] = Metric(match[2], labels | ({"le": set()} if part == "_bucket" else {}))
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> Iterator[tuple[str, str, str]]:
    """Dashboard, title of the panel, expression as Prometheus gets it."""
    for path in sorted(FOLDER.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$__rate_interval", "1m").replace("$peak_flops", "1e12")
                yield path.stem, panel["title"], expression


EXPRESSIONS = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()] + [
    (f"{board}: {title}", expression) for board, title, expression in panels()
]


def names(expression: str) -> set[str]:
    """The names of metrics in an expression: its words without strings, labels, ranges and functions."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[\w+\]', " ", expression)
    bare = re.sub(r"\b(by|on|ignoring|group_left) \([^)]*\)", " ", bare)
    return set(re.findall(r"(?<![\w:.])[a-zA-Z_][\w:]*(?![\w:]|\s*\()", bare)) - WORDS


def matchers(metric: str, expression: str) -> Iterator[tuple[str, list[str]]]:
    """Each label that a metric is selected by, with the values that it may have."""
    for braces in re.findall(rf"(?<![\w:]){re.escape(metric)}\{{([^}}]*)\}}", expression):
        for label, _, value in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', braces):
            yield label, value.split("|")


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_metric_and_label_is_known(where: str, expression: str) -> None:
    known, recorded = table(), {rule["record"] for rule in rules() if "record" in rule}
    metrics = names(expression)
    assert metrics
    assert metrics <= known.keys() | recorded | FOREIGN.keys()
    for metric in metrics & known.keys():
        for label, values in matchers(metric, expression):
            assert label in known[metric].labels.keys() | SCRAPED
            named = known[metric].labels.get(label, set())
            assert not named or set(values) <= named, f"{label} of {metric}"
    for label in (name.strip() for names in re.findall(r"\bby \(([^)]*)\)", expression) for name in names.split(",")):
        of_metrics = {name for metric in metrics & known.keys() for name in known[metric].labels}
        of_others = {name for metric in metrics & FOREIGN.keys() for name in FOREIGN[metric]}
        assert label in of_metrics | of_others | SCRAPED | ({"phase"} if metrics & recorded else set())


def test_what_rules_and_panels_count_begins_at_zero() -> None:
    """Prometheus sees no increase from nothing to 1: an alert would miss the first refusal, a panel would be empty."""
    for module in (
        *(f"services.{service}.metrics" for service in SERVERS),
        "services.environments.gateway.metrics",
        "shared.rpc.access",
    ):
        importlib.import_module(module)
    known = table()
    ruled = {name for rule in rules() for name in names(rule["expr"])}
    shown = {name for _, _, expression in panels() for name in names(expression)}
    for metric in (ruled | {name for name in shown if len(known.get(name, NO_METRIC).labels) == 1}) & known.keys():
        labels = known[metric].labels
        if known[metric].kind == "counter":  # a label whose values are not in the table makes no combination
            for values in product(*labels.values()):
                sample = dict(zip(labels, values, strict=True))
                assert REGISTRY.get_sample_value(metric, sample) is not None, (metric, sample)


def test_every_expression_parses(tmp_path: Path) -> None:
    """Panels as recording rules: Grafana would show an error to whoever opens the dashboard, and to nobody before."""
    wrapped = [{"record": f"panel:{i}", "expr": expression} for i, (_, _, expression) in enumerate(panels())]
    assert len(wrapped) > 50
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": wrapped}]}))
    check(tool("promtool", "prometheus"), "check", "rules", path)


def test_configuration() -> None:
    promtool = tool("promtool", "prometheus")
    check(promtool, "check", "config", DEPLOY / "prometheus/prometheus.yml")
    check(promtool, "check", "rules", *RULES)


def test_alertmanager() -> None:
    amtool, config = tool("amtool", "prometheus-alertmanager"), DEPLOY / "alertmanager/alertmanager.yml"
    check(amtool, "check-config", config)
    for severity in {rule["labels"]["severity"] for rule in ALERTS.values()}:
        routing = (amtool, "config", "routes", "test", "--config.file", config)
        check(*routing, f"--verify.receivers={severity}", f"severity={severity}")
    inhibited = set(re.findall(r"RouterShift\w+", config.read_text()))
    assert inhibited <= ALERTS.keys()


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_where_they_should(path: Path) -> None:
    check(tool("promtool", "prometheus"), "test", "rules", path)


def test_every_alert_tells_its_run_and_none_pages_for_one_that_has_finished() -> None:
    for rule in rules():
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
            kept = {label.strip() for label in labels.split(",")}
            known_anew = kept >= {"namespace", "job", "instance"}  # of `up`, which knows no run
            memory = rule["record"] == "namespace_run:routershift_finished:last" if "record" in rule else False
            assert kept >= {"namespace", "run"} or known_anew or memory, (rule.get("alert") or rule["record"], labels)
    for name, rule in ALERTS.items():
        if rule["labels"]["severity"] == "page":
            active = "and on (namespace, run) namespace_run:routershift_learner_active:max == 1"
            finished = "unless on (namespace, run) namespace_run:routershift_finished:last == 1"
            assert rule["expr"].endswith((active, finished)), name


def test_notifications_are_grouped_and_inhibited_by_run() -> None:
    config = yaml.safe_load((DEPLOY / "alertmanager/alertmanager.yml").read_text())
    assert config["route"]["group_by"] == ["namespace", "run", "alertname"]
    assert all(rule["equal"] == ["namespace", "run"] for rule in config["inhibit_rules"])


def test_every_alert_is_seen_firing_and_seen_quiet() -> None:
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for path in RULE_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for query in case.get("promql_expr_test", ()):
                seen[bool(query["exp_samples"])] |= set(re.findall(r'alertname="(\w+)"', query["expr"]))
    assert seen[True] == seen[False] == ALERTS.keys()


def test_every_alert_has_a_section_in_the_runbook_and_every_section_an_alert() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    sections = {
        "deploy/RUNBOOK.md#" + title.lower().replace(" ", "-"): body
        for title, body in re.findall(r"^### (.+)\n((?:(?!^#).*\n)+)", runbook, re.MULTILINE)
    }
    for name, alert in ALERTS.items():
        assert f"`{name}`" in sections[alert["annotations"]["runbook"]]
        assert alert["labels"]["severity"] in ("page", "ticket")
    assert {alert["annotations"]["runbook"] for alert in ALERTS.values()} == sections.keys()


def test_what_the_runbook_names_exists() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    metrics = {re.sub("_(bucket|sum|count)$", "", name) for name in table()}
    assert set(re.findall(r"\brouter[sS]hift_\w+", runbook)) <= metrics
    assert set(re.findall(r"\bRouterShift[A-Z]\w+", runbook)) <= ALERTS.keys()
    tables: dict[str, type[Table]] = {**SERVERS, "run": RunSettings, "streams": StreamSettings}
    settings = re.findall(rf"`({'|'.join(tables)})\.(\w+)", runbook)
    assert len(settings) > 15
    for name, key in settings:
        assert key in tables[name].model_fields, f"{name}.{key}"


def test_every_service_is_scraped_at_its_own_port() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    scraped = {
        job["job_name"]: (job["dns_sd_configs"][0]["names"], job["dns_sd_configs"][0]["port"])
        for job in config["scrape_configs"]
    }
    ports = {name: table.model_fields["metrics_port"].default for name, table in SERVERS.items()}
    assert scraped == {name: ([name], port) for name, port in ports.items()}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_committed_dashboard_is_the_generated_one(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == DASHBOARDS[name](), "run make dashboards"


def test_dashboards_are_complete() -> None:
    files = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert files.keys() == DASHBOARDS.keys()
    assert len({board["uid"] for board in files.values()}) == len(files)
    for name, board in files.items():
        for panel in board["panels"]:
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, (name, panel["title"])
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(places)) == len(places)
        assert all(target["legendFormat"] for panel in board["panels"] for target in panel.get("targets", ()))


def test_grafana_finds_what_it_is_to_provision() -> None:
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {source["type"] for source in sources} == {"prometheus", "alertmanager"}
    providers = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/routershift.yml").read_text())["providers"]
    assert [provider["type"] for provider in providers] == ["file"]


def test_vllm_has_the_metrics_that_are_asked_for() -> None:
    if (vllm := importlib.util.find_spec("vllm")) is None or vllm.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(vllm.origin).parent / "v1/metrics/loggers.py").read_text()
    for name in (name for name in FOREIGN if name.startswith("vllm:")):
        assert f'name="{name.removesuffix("_total")}"' in source
