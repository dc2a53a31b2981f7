"""What the tests of deploy/k8s ask of rendered manifests. No cluster: kubectl renders, the rest is reading."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # annotated, without the marker that says so
import pytest
import yaml
from jsonschema import Draft202012Validator

from services.cli.recipe import Recipe
from shared.settings import ServerSettings

VERSION = "1.32"
OVERLAYS = ("dev", "gpu", "multinode")
OPTIONAL = ("broadcast", "keda", "monitoring", "tls")
SERVICES = ("generation", "environments", "reward", "learner", "curriculum")
NAME = "app.kubernetes.io/name"
PORTS = {
    "generation": (50051, 9101),
    "reward": (50052, 9102),
    "learner": (50053, 9103),
    "curriculum": (50054, 9104),
    "environments": (50055, 9105),
}
K8S = Path(__file__).parents[2] / "deploy" / "k8s"
SCHEMAS = Path(__file__).parents[1] / "deploy" / "schemas"

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl: install kubectl 1.27 or later")

# Of kubectl, which ends before it would pay to collect garbage. Copied once: pytest changes its own meanwhile.
_ENVIRONMENT = os.environ | {"GOGC": "off"}

_AT_START = {"status.podIP": "10.0.0.1"}

_SUFFIXES = {"": 1.0, "m": 1e-3} | {
    letter + binary: (1024.0 if binary else 1000.0) ** power
    for power, letters in enumerate(("kK", "MM", "GG", "TT", "PP"), 1)
    for letter, binary in zip(letters, ("", "i"), strict=True)
}

Resource = dict[str, Any]
# An overlay, and the optional components on it.
Combination = tuple[str, ...]
COMBINATIONS: tuple[Combination, ...] = tuple(
    (overlay, *chosen)
    for overlay in OVERLAYS
    for count in range(len(OPTIONAL) + 1)
    for chosen in combinations(OPTIONAL, count)
)


@dataclass(frozen=True)
class Pods:
    """The pods of one template, and who makes them."""

    owner: str  # KIND/NAME
    count: int | None  # None: an autoscaler decides
    grace: float
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.labels.get(NAME, self.owner)

    @property
    def container(self) -> Mapping[str, Any]:
        """The one that the pods are for."""
        return dict(self.spec["containers"][0])

    @property
    def first(self) -> "Pods | None":
        """What runs before, as if it were alone; None where nothing does."""
        if not (before := self.spec.get("initContainers")):
            return None
        return replace(self, owner=f"{self.owner}/init", spec={**self.spec, "containers": before})

    @property
    def beside(self) -> "Pods | None":
        """What runs beside, as if it were alone; None where nothing does."""
        if not (others := self.spec["containers"][1:]):
            return None
        return replace(self, owner=f"{self.owner}/beside", spec={**self.spec, "containers": others})

    @property
    def environment(self) -> dict[str, str]:
        """The environment at its start; only its own address is known here."""
        return {
            each["name"]: each["value"] if "value" in each else _AT_START[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in self.container.get("env", [])
        }

    @property
    def mounts(self) -> dict[str, Mapping[str, Any]]:
        """By path: the volume, with what its mount says added."""
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        claimed = {"name": "data", "volumeClaimTemplate": True}
        return {
            mount["mountPath"]: {**volumes.get(mount["name"], claimed), "mount": mount}
            for mount in self.container.get("volumeMounts", [])
        }

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}


class Stack:
    """The resources of one combination."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        self.resources = resources

    def of_kind(self, kind: str) -> dict[str, Resource]:
        return {each["metadata"]["name"]: each for each in self.resources if each["kind"] == kind}

    def pods(self) -> Iterator[Pods]:
        for each in self.resources:
            owner, spec = f"{each['kind']}/{each['metadata']['name']}", each.get("spec", {})
            if each["kind"] == "JobSet":
                for job in spec["replicatedJobs"]:
                    template = job["template"]["spec"]["template"]
                    yield _pods(f"{owner}/{job['name']}", job["template"]["spec"]["completions"], template)
            elif each["kind"] in ("Job", "CronJob"):
                yield _pods(owner, 1, spec.get("jobTemplate", each)["spec"]["template"])
            elif each["kind"] in ("Deployment", "StatefulSet"):
                yield _pods(owner, spec.get("replicas"), spec["template"])
            elif each["kind"] == "Pod":
                yield _pods(owner, 1, each)

    def containers(self) -> Iterator[Pods]:
        """The pods, and what runs in some of them before and beside, each with one container."""
        for pods in self.pods():
            yield from (each for each in (pods.first, pods, pods.beside) if each)

    def services_pods(self) -> dict[str, Pods]:
        """The pods that serve, of each of our services: of a learner over several nodes only those of rank 0."""
        return {pods.name: pods for pods in self.pods() if pods.name in SERVICES and pods.ports}


def _pods(owner: str, count: int | None, template: Resource) -> Pods:
    spec = template["spec"]
    return Pods(owner, count, spec["terminationGracePeriodSeconds"], template["metadata"].get("labels", {}), spec)


def render(folder: Path) -> list[Resource]:
    """What `kubectl kustomize` prints for a folder."""
    ran = subprocess.run(["kubectl", "kustomize", str(folder)], env=_ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, f"{folder}: {ran.stderr}"
    assert "deprecated" not in ran.stderr, ran.stderr
    return list(yaml.load_all(ran.stdout, yaml.CSafeLoader))  # ten times as fast as safe_load_all


@cache
def fault(resource: str) -> str | None:
    """What is wrong with a resource (JSON) by the schema of its kind; a JobSet's jobs are checked as Jobs too."""
    data = json.loads(resource)
    try:
        if (SCHEMAS / f"{data['kind'].lower()}.json").is_file():
            schema = json.loads((SCHEMAS / f"{data['kind'].lower()}.json").read_text())
            Draft202012Validator(schema).validate(data)
            for job in data["spec"].get("replicatedJobs", []):
                kubernetes_validate.validate(
                    {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]},
                    VERSION,
                    strict=True,
                )
        else:
            kubernetes_validate.validate(data, VERSION, strict=True)
    except Exception as error:
        return f"{data['kind']}/{data['metadata']['name']}: {getattr(error, 'message', error)}"
    return None


def server_settings(settings: Mapping[str, Recipe], service: str) -> ServerSettings:
    """The table of a service, as the service itself would read it."""
    return settings[service].server(service)


def quantity(text: str) -> float:
    """Cores, bytes or devices as a number. Raises ValueError for what Kubernetes would refuse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGTP]|[KMGTP]i)?", text)
    if not match:
        raise ValueError(f"{text!r} is no quantity")
    return float(match[1]) * _SUFFIXES[match[2] or ""]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """By matchLabels and matchExpressions with In; a selector that is empty selects everything."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions), "another operator: teach it to the test"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


@dataclass(frozen=True)
class Peer:
    """Somebody who connects: a pod by its labels, in a namespace by its own."""

    labels: Mapping[str, str]
    namespace: Mapping[str, str]
    ports: Mapping[str, int]


def may_connect(
    policies: Sequence[Resource],
    ours: Mapping[str, str],
    client: Peer,
    server: Peer,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Whether network policies of the namespace labelled `ours` let a connection pass, as Kubernetes says.

    A pod that no policy of a direction selects may do all in that direction; otherwise one of them must allow it.
    """
    wanted = (protocol, port)
    return _passes(policies, ours, "Egress", client, server, server, wanted) and _passes(
        policies, ours, "Ingress", server, client, server, wanted
    )


def _passes(
    policies: Sequence[Resource],
    ours: Mapping[str, str],
    way: str,
    subject: Peer,
    other: Peer,
    server: Peer,
    wanted: tuple[str, int],
) -> bool:
    rules = [
        policy["spec"].get(way.lower(), [])
        for policy in policies
        if subject.namespace == ours
        and way in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], subject.labels)
    ]
    side = {"Egress": "to", "Ingress": "from"}[way]
    return not rules or any(
        any(_is_peer(peer, ours, other) for peer in rule.get(side, [{}]))
        and _is_port(rule.get("ports"), server, wanted)
        for each in rules
        for rule in each
    )


def _is_peer(peer: Resource, ours: Mapping[str, str], other: Peer) -> bool:
    there = selects(peer["namespaceSelector"], other.namespace) if "namespaceSelector" in peer else True
    here = "namespaceSelector" in peer or not peer or other.namespace == ours
    return here and there and selects(peer.get("podSelector", {}), other.labels)


def _is_port(ports: Sequence[Resource] | None, server: Peer, wanted: tuple[str, int]) -> bool:
    return ports is None or any(
        wanted == (each.get("protocol", "TCP"), server.ports.get(each["port"], each["port"])) for each in ports
    )
