"""Releases of the chart: they share a namespace and nothing in it, and have what their values say."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.helm.release import CHART, RELEASE, alone
from tests.support import chart
from tests.support.chart import EXTERNAL, GRAFANA, VALUES, by_name
from tests.support.kubernetes import K8S, NAME, OVERLAYS, SERVICES, Peer, Resource, Stack, fault, may_connect, selects

INSTANCE = "app.kubernetes.io/instance"


def test_a_redis_of_ones_own_is_known_by_a_secret_alone() -> None:
    stack = Stack(alone(chart.rendered("gpu", EXTERNAL)))
    assert "redis" not in stack.of_kind("StatefulSet").keys() | stack.of_kind("Service").keys()
    for name, pods in stack.services_pods().items():
        environment = {each["name"]: each for each in pods.container["env"]}
        assert environment["REDIS_URL"]["valueFrom"] == {"secretKeyRef": {"name": "streams", "key": "url"}}
        assert environment["ROUTERSHIFT_REDIS__AUTHORITY"]["value"] == "/etc/routershift-redis-authority/ca.crt"
        assert pods.mounts["/etc/routershift-redis-authority"]["secret"]["secretName"] == "streams-ca"
        password = environment["ROUTERSHIFT_REDIS__SENTINEL_PASSWORD_FILE"]["value"]
        assert pods.mounts[str(Path(password).parent)]["secret"]["secretName"] == "streams-sentinel"
        assert "ROUTERSHIFT_REDIS__USERNAME" not in environment
        rules = stack.of_kind("NetworkPolicy")[name]["spec"]["egress"]
        assert {"to": EXTERNAL["redis"]["to"], "ports": [{"port": 6379}, {"port": 26379}]} in rules


def test_two_releases_in_a_namespace_share_nothing() -> None:
    ours, theirs = (
        chart.rendered("dev", {"tls": {"enabled": True}, "monitoring": {"scrape": True}}, release=name, namespace="lab")
        for name in ("alice", "bob")
    )
    assert not by_name(ours).keys() & by_name(theirs).keys()
    assert all(each["metadata"]["namespace"] == "lab" for each in ours)
    assert "bob" not in yaml.safe_dump(ours)
    pods = {pods.owner: pods for pods in Stack([*ours, *theirs]).pods()}
    for each in ours:
        spec = each.get("spec", {})
        selectors = [spec[key] for key in ("selector", "podSelector") if key in spec]
        if each["kind"] == "Service":
            selectors = [{"matchLabels": spec["selector"]}]
        for selector in selectors:
            if each["kind"] == "ServiceMonitor":
                continue  # of Services, which have the labels too
            found = {owner for owner, other in pods.items() if selects(selector, other.labels)}
            assert found, each["metadata"]["name"]
            assert all("/alice-" in owner for owner in found), each["metadata"]["name"]
    (monitor,) = [each for each in ours if each["kind"] == "ServiceMonitor"]
    services = [each for each in (*ours, *theirs) if each["kind"] == "Service"]
    scraped = [each for each in services if selects(monitor["spec"]["selector"], each["metadata"]["labels"])]
    assert {each["metadata"]["name"] for each in scraped} == {f"alice-{name}" for name in SERVICES}
    for name, mine in Stack(ours).services_pods().items():
        assert mine.environment["ROUTERSHIFT_RUN__ID"] == "alice"
        assert mine.environment["REDIS_URL"] == "rediss://alice-redis:6379/0"
        assert mine.mounts["/etc/routershift-redis"]["secret"]["secretName"] == f"alice-redis-{name}"


def test_a_backup_reaches_redis_alone_and_reads_the_run() -> None:
    stack = Stack(alone(chart.rendered("dev", {"backup": {"enabled": True}, "tls": {"enabled": True}})))
    policies, ours = list(stack.of_kind("NetworkPolicy").values()), {"kubernetes.io/metadata.name": "routershift"}
    pods = {each.name: each for each in stack.pods()}
    peers = {name: Peer(each.labels, ours, each.ports) for name, each in pods.items()}
    reached = {
        (name, port)
        for name, peer in peers.items()
        for port, number in peer.ports.items()
        if may_connect(policies, ours, peers["backup"], peer, number)
    }
    assert reached == {("redis", "redis")}
    assert {path for path, each in pods["backup"].mounts.items() if not each["mount"].get("readOnly")} == {"/backups"}
    assert stack.of_kind("Certificate")["backup"]["spec"]["secretName"] == "tls-backup"
    (script,) = [each for name, each in stack.of_kind("ConfigMap").items() if name.startswith("backup")]
    assert script["data"]["backup.sh"] == (K8S.parent / "backup/backup.sh").read_text()
    assert pods["backup"].environment["RUN"] == RELEASE


def test_peers_of_a_policy_are_of_its_release() -> None:
    """A peer that is known by its service alone would be that of every release of the namespace."""
    for each in chart.rendered("multinode", VALUES["broadcast"]):
        if each["kind"] == "NetworkPolicy":
            spec = each["spec"]
            peers = [peer for rule in spec.get("ingress", []) for peer in rule.get("from", [])]
            peers += [peer for rule in spec.get("egress", []) for peer in rule.get("to", [])]
            selectors = [peer["podSelector"] for peer in peers if "podSelector" in peer]
            assert all(s["matchLabels"][INSTANCE] == RELEASE for s in (spec["podSelector"], *selectors)), each


@pytest.mark.parametrize(("gigabytes", "speed"), [(0, 100), (61.1, 100), (1340, 100), (1340, 2000)])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_start_is_given_the_time_that_the_model_takes_to_be_read(
    overlay: str, gigabytes: float, speed: float
) -> None:
    values = {"model": {"gigabytes": gigabytes, "megabytesPerSecond": speed}}
    stack = Stack(alone(chart.rendered(overlay, values)))
    for name in ("generation", "learner"):
        pods = stack.services_pods()[name]
        probe = pods.container["startupProbe"]
        allowed = probe["periodSeconds"] * probe["failureThreshold"]
        said = pods.environment.get(f"ROUTERSHIFT_{name.upper()}__START_SECONDS")
        reading = gigabytes * 1000 / speed + 180
        start = float(said) if said else _recipe_start(overlay)
        assert start >= reading
        assert allowed >= 1.2 * start
        if name == "generation":
            assert stack.of_kind("Deployment")[name]["spec"]["progressDeadlineSeconds"] >= allowed + 600
            if said:
                assert reading - 180 < float(pods.environment["ROUTERSHIFT_GENERATION__VLLM__ANSWER_SECONDS"]) < start


def _recipe_start(overlay: str) -> float:
    found = re.search(r"(?m)^start_seconds = (\d+)", (K8S / "overlays" / overlay / "recipe.toml").read_text())
    return float(found[1]) if found else 180.0


@pytest.mark.parametrize(("overlay", "parameters"), [("gpu", 6.92e9), ("multinode", 30.53e9)])
def test_values_say_the_size_of_the_model(overlay: str, parameters: float) -> None:
    said = yaml.safe_load((CHART.parent / f"{overlay}.yaml").read_text())["model"]["gigabytes"]
    assert said == pytest.approx(2e-9 * parameters, rel=0.01)  # bfloat16


def test_a_digest_is_stronger_than_the_tag() -> None:
    digest = f"sha256:{0:064}"
    stack = Stack(
        alone(chart.rendered("gpu", {"digests": {"learner-gpu": digest}, "tag": "2.0", "pullSecrets": ["a"]}))
    )
    images = {pods.name: pods.container["image"] for pods in stack.pods()}
    assert images["learner"] == f"localhost/routershift/learner-gpu@{digest}"
    assert images["generation"] == "localhost/routershift/generation:2.0"
    assert all(pods.spec["imagePullSecrets"] == [{"name": "a"}] for pods in stack.pods())


def test_the_model_is_loaded_by_a_pod_that_alone_has_a_way_out() -> None:
    overlay, values = chart.CASES["chart", "download"]
    stack = Stack(alone(chart.rendered(overlay, values)))
    (job,) = stack.of_kind("Job").values()
    pod = job["spec"]["template"]
    environment = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    compile(pod["spec"]["containers"][0]["args"][0], "args", "exec")
    assert environment["HF_HUB_OFFLINE"] == "0"
    assert environment["HF_TOKEN_PATH"] == "/etc/hub/token"
    assert environment["FOLDER"] == "/fill/olmoe-1b-7b"
    out = [name for name, each in stack.of_kind("NetworkPolicy").items() if {} in _peers(each) and name != "dns"]
    assert out == ["model"]
    assert pod["metadata"]["labels"][NAME] == "model"
    for pods in stack.pods():
        if "/models" in pods.mounts:
            (waiting,) = pods.spec["initContainers"]
            assert waiting["command"][-1] == "/models/olmoe-1b-7b"
            assert waiting["image"] == pods.container["image"]


def _peers(policy: Resource) -> list[Any]:
    return [peer for rule in policy["spec"].get("egress", []) for peer in rule.get("to", [{}])]


def test_commands_of_the_readme_render_and_find_their_secrets(repository: Path) -> None:
    """Those of the two runs, with `helm template` in the place of `helm upgrade --install`."""
    text = (repository / "deploy/README.md").read_text().replace("\\\n", "")
    commands = re.findall(r"(?m)^helm upgrade --install (.+)$", text)
    made = set(re.findall(r"kubectl -n lab create secret [a-z-]+ ([a-z-]+)", text))
    assert len(commands) == 2
    for command in commands:
        ran = chart.run("template", *shlex.split(command))
        assert ran.returncode == 0, ran.stderr
        found = [each for each in yaml.safe_load_all(ran.stdout) if each]
        script = repository / "deploy/helm/secrets.sh"
        printed = subprocess.run([script, command.split()[0]], capture_output=True, text=True, check=True).stdout
        secrets = {each["metadata"]["name"]: each for each in yaml.safe_load_all(printed) if each}
        named = set(re.findall(r"secretName: ([\w-]+)", ran.stdout))
        assert named | {f"{command.split()[0]}-redis-operator"} <= secrets.keys() | made
        assert all(fault(json.dumps(each)) is None for each in (*found, *secrets.values()))


def test_rules_and_dashboards_are_those_of_the_repository() -> None:
    found = Stack(chart.rendered("dev", GRAFANA))
    (rule,), boards = found.of_kind("PrometheusRule").values(), found.of_kind("ConfigMap")[f"{RELEASE}-dashboards"]
    assert rule["spec"] == yaml.safe_load((K8S / "prometheus/rules.yaml").read_text())["spec"]
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert boards["data"] == {
        path.name: path.read_text() for path in (K8S.parent / "grafana/dashboards").glob("*.json")
    }
    assert found.of_kind("HTTPRoute")[f"{RELEASE}-grafana"]["metadata"]["namespace"] == "monitoring"
