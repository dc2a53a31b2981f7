"""Several runs in one cluster: each has its namespace carried through, and the rules are of the cluster."""

import json
import re
import shutil
from pathlib import Path

import yaml

from deploy.k8s import rules
from tests.support.kubernetes import K8S, SERVICES, Stack, fault, needs_kubectl, render

pytestmark = needs_kubectl


def test_a_namespace_of_ones_own_is_carried_through(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    own = tmp_path / "alice"
    own.mkdir()
    readme = (K8S / "README.md").read_text()
    (shown,) = [block for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "\nnamespace: " in block]
    (own / "kustomization.yaml").write_text(shown.replace("routershift/deploy/", "../"))
    stack = Stack(render(own))
    assert set(stack.of_kind("Namespace")) == {"alice"}
    without = ("Namespace", "PriorityClass")
    assert {each["metadata"]["namespace"] for each in stack.resources if each["kind"] not in without} == {"alice"}
    queries = [each["spec"]["triggers"][0]["metadata"]["query"] for each in stack.of_kind("ScaledObject").values()]
    assert len(queries) == 2
    assert all('{namespace="alice", stream="' in query for query in queries), queries
    served = {
        name: each["spec"]["dnsNames"] for name, each in stack.of_kind("Certificate").items() if name != "authority"
    }
    assert served == {name: [name, f"{name}.alice", f"{name}.alice.svc"] for name in (*SERVICES, "redis")}
    names = re.findall(
        r"routershift[\w.-]*", yaml.safe_dump([each for each in stack.resources if each["kind"] != "ConfigMap"])
    )
    assert not [name for name in names if ".svc" in name], "another name of a namespace: carry it through in names/"


def test_rules_are_of_the_cluster_and_once(stack: Stack) -> None:
    assert not stack.of_kind("PrometheusRule"), "each run would have all runs' alerts evaluated again"


def test_the_operator_takes_the_rules() -> None:
    (rule,) = render(K8S / "prometheus")
    assert rule["metadata"]["namespace"] == "monitoring"
    assert fault(json.dumps(rule)) is None


def test_the_rules_of_prometheus_are_those_of_the_operator() -> None:
    written = yaml.safe_load(rules.WRITTEN.read_text())
    assert written == rules.prometheus_rule(), "run make rules"
