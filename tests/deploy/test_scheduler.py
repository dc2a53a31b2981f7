"""The model of Kubernetes' scheduler: it lets in what the scheduler lets in, and keeps out what it keeps out."""

from typing import Any

import pytest

from tests.support.scheduler import HOSTNAME, PREFERENCES, Cluster, Node, Pod, Preference, as_wished, most_even

GPU = "nvidia.com/gpu"
MINE = {"matchLabels": {"app": "a"}}


def node(name: str, cores: float = 8.0, gpus: float = 8.0, **more: Any) -> Node:
    return Node(name, {"cpu": cores, GPU: gpus}, **more)


def pod(name: str = "pod", app: str = "a", cpu: str = "1", gpus: int = 0, priority: int = 0, **spec: Any) -> Pod:
    resources = {"requests": {"cpu": cpu}, "limits": {"cpu": "64"} | ({GPU: str(gpus)} if gpus else {})}
    return Pod(name, {"app": app}, {"containers": [{"resources": resources}], **spec}, priority)


def spread(when: str) -> list[dict[str, Any]]:
    return [{"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": when, "labelSelector": MINE}]


def affinity(kind: str, app: str) -> dict[str, Any]:
    term = {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": {"app": app}}}
    return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


@pytest.mark.parametrize("preference", PREFERENCES, ids=lambda preference: preference.__name__)
@pytest.mark.parametrize(
    ("fits", "wanted", "nodes"),
    [
        (2, [pod(cpu="4")] * 2, [node("n")]),
        (1, [pod(cpu="4500m")] * 2, [node("n")]),
        (2, [pod(gpus=8)] * 3, [node("n"), node("m")]),  # limits are requests
        (0, [pod(gpus=1)], [Node("n", {"cpu": 8.0})]),
        (0, [pod(nodeSelector={"kind": "gpu"})], [node("n")]),
        (1, [pod(nodeSelector={"kind": "gpu"})], [node("n", labels={"kind": "gpu"})]),
        (0, [pod()], [node("n", taints=[{"key": "t", "effect": "NoSchedule"}])]),
        (1, [pod()], [node("n", taints=[{"key": "t", "effect": "PreferNoSchedule"}])]),
        (
            1,
            [pod(tolerations=[{"key": "t", "operator": "Exists", "effect": "NoSchedule"}])],
            [node("n", taints=[{"key": "t", "value": "v", "effect": "NoSchedule"}])],
        ),
        (
            0,
            [pod(tolerations=[{"key": "t", "value": "w"}])],
            [node("n", taints=[{"key": "t", "value": "v", "effect": "NoSchedule"}])],
        ),
        # The second node has no room for another, and the first would have two more than it.
        (
            3,
            [pod(cpu="2", topologySpreadConstraints=spread("DoNotSchedule"))] * 4,
            [node("n"), node("m", cores=2.0)],
        ),
        (4, [pod(cpu="1", topologySpreadConstraints=spread("ScheduleAnyway"))] * 4, [node("n"), node("m", cores=1.0)]),
        (2, [pod(affinity=affinity("podAntiAffinity", "a"))] * 3, [node("n"), node("m")]),
        (0, [pod(affinity=affinity("podAffinity", "b"))], [node("n")]),
        (2, [pod(cpu="4", affinity=affinity("podAffinity", "a"))] * 4, [node("n"), node("m")]),
        (1, [pod("b", app="b", affinity=affinity("podAntiAffinity", "a")), pod("a")], [node("n")]),
    ],
)
def test_what_fits(fits: int, wanted: list[Pod], nodes: list[Node], preference: Preference) -> None:
    cluster = Cluster(nodes, preference)
    cluster.add(Pod(f"{i}", each.labels, each.spec, each.priority) for i, each in enumerate(wanted))
    assert len(cluster.place) == fits
    assert len(cluster.pending) == len(wanted) - fits


def test_replicas_that_are_spread_leave_no_whole_node() -> None:
    replicas = [pod(f"r{i}", gpus=2, topologySpreadConstraints=spread("ScheduleAnyway")) for i in range(4)]
    ranks = [pod(f"l{i}", app="l", gpus=8) for i in range(2)]
    cluster = Cluster([node("n"), node("m"), node("o")], as_wished)
    cluster.add(replicas)
    cluster.add(ranks)
    assert cluster.pending == ranks


def test_a_higher_priority_evicts_as_few_as_it_must_and_they_start_elsewhere() -> None:
    replicas = [pod(f"r{i}", gpus=2) for i in range(4)]
    ranks = [pod(f"l{i}", app="l", gpus=8, priority=1000) for i in range(2)]
    cluster = Cluster([node("n"), node("m"), node("o")], most_even)
    cluster.add(replicas)
    assert len({cluster.place[each].name for each in replicas}) == 3
    cluster.add(ranks)
    assert cluster.pending == []
    assert len({cluster.place[each].name for each in replicas}) == 1
    assert len(cluster.evicted) == 2  # the node with two of them is the third choice


def test_who_has_the_same_priority_waits() -> None:
    cluster = Cluster([node("n")], as_wished)
    cluster.add([pod("first", gpus=8, priority=1000)])
    cluster.add([pod("second", gpus=8, priority=1000), pod("low", cpu="1")])
    assert [each.name for each in cluster.pending] == ["second"]
    assert cluster.evicted == []


def test_who_need_not_leave_stays() -> None:
    cluster = Cluster([node("n")], as_wished)
    cluster.add([pod("small"), pod("large", gpus=8)])
    cluster.add([pod("first", gpus=4, priority=1)])
    assert [each.name for each in cluster.evicted] == ["large"]
