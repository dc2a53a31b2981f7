"""The chart: it is the kustomize tree in other words, refuses what is wrong, and its releases share a namespace."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.helm.release import CHART, RECIPES, RELEASE, alone
from deploy.k8s import manifests
from tests.support import chart
from tests.support.kubernetes import (
    K8S,
    NAME,
    OPTIONAL,
    OVERLAYS,
    SERVICES,
    Combination,
    Resource,
    Stack,
    fault,
    needs_kubectl,
    render,
    selects,
)

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
        "to": [{"ipBlock": {"cidr": "10.0.0.7/32"}}],
    }
}
GRAFANA = {
    "monitoring": {"scrape": True, "rules": True, "dashboards": True, "labels": {"release": "prometheus"}},
    "routes": {"parents": [{"name": "public"}], "grafana": {"enabled": True, "hostnames": ["grafana.example.org"]}},
}
INSTANCE = "app.kubernetes.io/instance"


def by_name(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
    return {(each["kind"], each["metadata"]["name"]): each for each in resources}


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("components", [(), *((each,) for each in OPTIONAL), OPTIONAL], ids="+".join)
def test_it_is_the_kustomize_tree(
    overlay: str, components: tuple[str, ...], renderings: dict[Combination, Future[list[Resource]]]
) -> None:
    values = dict(chain.from_iterable(VALUES[each].items() for each in components))
    kustomized = by_name(alone(renderings[(overlay, *components)].result()))
    of_the_cluster = {("Namespace", "routershift"), ("PriorityClass", "routershift-run"), ("Pod", "fill-models")}
    assert by_name(alone(chart.rendered(overlay, values))) == {
        key: each for key, each in kustomized.items() if key not in of_the_cluster
    }


@needs_kubectl
def test_a_queue_is_that_of_the_component(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "own").mkdir()
    choice = {"resources": ["../k8s/overlays/multinode"], "components": ["../k8s/components/kueue"]}
    (tmp_path / "own/kustomization.yaml").write_text(yaml.safe_dump(choice))
    kustomized, released = (
        by_name(alone(each)) for each in (render(tmp_path / "own"), chart.rendered("multinode", VALUES["kueue"]))
    )
    for key in (("JobSet", "learner"), ("Deployment", "generation")):
        assert released[key] == kustomized[key]


def test_the_base_is_rendered_from_it() -> None:
    chart.run("version")  # skips where there is no helm
    written = {path.name: list(yaml.safe_load_all(path.read_text())) for path in manifests.FILES}
    assert written == manifests.files(), "run make manifests"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_helm_lints_it(overlay: str) -> None:
    own = ["--set=registry=a", f"--set-file=recipe={RECIPES / overlay}/recipe.toml"]
    ran = chart.run("lint", "--strict", CHART, f"--values={CHART.parent / overlay}.yaml", *own)
    assert ran.returncode == 0, ran.stdout
    assert "[WARNING]" not in ran.stdout, ran.stdout


@pytest.mark.parametrize("overlay", ["dev", "multinode"])
@pytest.mark.parametrize("values", [EXTERNAL, GRAFANA, {**EXTERNAL, **VALUES["tls"]}], ids=["redis", "grafana", "both"])
def test_schemas_accept_other_values(overlay: str, values: dict[str, Any]) -> None:
    found = chart.rendered(overlay, values)
    assert [why for each in found if (why := fault(json.dumps(each, sort_keys=True)))] == []


def test_a_redis_of_ones_own_is_known_by_a_secret_alone() -> None:
    stack = Stack(alone(chart.rendered("gpu", EXTERNAL)))
    assert "redis" not in stack.of_kind("StatefulSet").keys() | stack.of_kind("Service").keys()
    for name, pods in stack.services_pods().items():
        environment = {each["name"]: each for each in pods.container["env"]}
        assert environment["REDIS_URL"]["valueFrom"] == {"secretKeyRef": {"name": "streams", "key": "url"}}
        assert environment["ROUTERSHIFT_REDIS__AUTHORITY"]["value"] == "/etc/routershift-redis-authority/ca.crt"
        assert pods.mounts["/etc/routershift-redis-authority"]["secret"]["secretName"] == "streams-ca"
        assert "ROUTERSHIFT_REDIS__USERNAME" not in environment
        rules = stack.of_kind("NetworkPolicy")[name]["spec"]["egress"]
        assert {"to": EXTERNAL["redis"]["to"], "ports": [{"port": 6379}]} in rules


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"regisrty": "a"}, "'regisrty' not allowed"),
        ({"learner": {"gpu": 1}}, "at '/learner': additional properties 'gpu' not allowed"),
        ({"redis": {"url": {"name": "a"}}}, "at '/redis/url': additional properties 'name' not allowed"),
        ({"generation": {"resources": {"limits": {"cpus": "1"}}}}, "additional properties 'cpus' not allowed"),
        ({"learner": {"gpus": "one"}}, "at '/learner/gpus': got string, want integer"),
        ({"learner": {"env": {"NCCL_DEBUG": 1}}}, "at '/learner/env/NCCL_DEBUG': got number, want string"),
        ({"learner": {"rdma": {"count": 1}}}, "properties 'resource' required"),
        ({"digests": {"learner": "latest"}}, "at '/digests/learner'"),
        ({"registry": ""}, "registry: it is empty; name the registry of your images"),
        ({"recipe": ""}, "recipe: it is empty; give the file"),
        ({"recipe": "a = ["}, "recipe: it is no TOML"),
        ({"recipe": '[run]\nmodel = "tiny"'}, 'run.model is "tiny"; expected a folder below /models'),
        ({"generation": {"gpus": 2}}, "generation.gpus is 2 and generation.vllm.tensor_parallel_size of the recipe 1"),
        ({"learner": {"gpus": 8}}, "learner.gpus is 8 and learner.parallel.processes of the recipe 4"),
        ({"learner": {"gpus": 0}}, 'learner.gpus is 0 and learner.device of the recipe "cuda"'),
        ({"redis": {"enabled": False}}, "redis.url.secret: it is empty while redis.enabled=false"),
        ({"redis": {"url": {"secret": "a"}}}, 'redis.url.secret is "a" while redis.enabled'),
        ({"model": {"download": {"enabled": True}}}, "model.download.repository: it is empty"),
        ({"tls": {"enabled": True}, "routes": {"gateway": {"enabled": True}}}, "routes: with tls.enabled"),
    ],
)
def test_what_is_wrong_is_refused_by_name(values: dict[str, Any], why: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"registry": "a", "recipe": (K8S / "overlays/gpu/recipe.toml").read_text()} | values))
    ran = chart.run("template", "a", CHART, f"--values={CHART.parent}/gpu.yaml", f"--values={own}")
    assert ran.returncode != 0
    assert why in ran.stderr


def test_a_value_that_is_not_said_is_in_the_schema() -> None:
    """And none is in the schema that values.yaml does not show."""

    def keys(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        for key, each in schema.get("properties", {}).items():
            yield (*path, key)
            yield from keys(each, (*path, key))

    def shown(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for key, each in values.items():
            yield (*path, key)
            if isinstance(each, dict):
                yield from shown(each, (*path, key))

    whole = json.loads((CHART / "values.schema.json").read_text())
    definitions = whole["definitions"]
    free = ("digests", "rdma", "ephemeral-storage", "global")
    allowed = {path for path in keys(whole) if not set(path) & set(free)}
    assert allowed == {path for path in shown(yaml.safe_load((CHART / "values.yaml").read_text())) if path in allowed}


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
