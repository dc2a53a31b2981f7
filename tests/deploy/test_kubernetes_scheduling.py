"""Every overlay of deploy/k8s is packed onto the nodes that its README states, by a model of the scheduler's rules."""

import re
from collections.abc import Iterator, Sequence
from itertools import permutations

import pytest

from tests.support.kubernetes import K8S, NAME, OVERLAYS, Stack, needs_kubectl, quantity
from tests.support.scheduler import PREFERENCES, Cluster, Node, Pod, Preference, as_wished, most_even, pods_of

pytestmark = needs_kubectl

GPU = "nvidia.com/gpu"
ON_GPUS = {"nvidia.com/gpu.present": "true"}
TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}
_NODES = re.compile(r"(\d+) x (?:(\d+) GPUs, )?(\d+) cores, (\d+) GiB")


def stated(overlay: str) -> list[list[Node]]:
    """The alternatives of nodes in the README's row of an overlay."""
    (row,) = re.findall(rf"^\| `{overlay}` \|.*$", (K8S / "README.md").read_text(), re.MULTILINE)
    return [[_node(index, *shape) for index in range(int(count))] for count, *shape in _NODES.findall(row)]


def _node(index: int, gpus: str, cores: str, gib: str) -> Node:
    room = {"cpu": float(cores), "memory": quantity(f"{gib}Gi")}
    return Node(f"node-{index}", room | ({GPU: float(gpus), "rdma/hca": 8.0} if gpus else {}), ON_GPUS if gpus else {})


def kinds(stack: Stack) -> dict[str, list[Pod]]:
    """The pods of each service; of one that an autoscaler counts, the fewest."""
    priorities = {name: each["value"] for name, each in stack.of_kind("PriorityClass").items()}
    found: dict[str, list[Pod]] = {}
    for pods in stack.pods():
        fewest = stack.of_kind("ScaledObject")[pods.name]["spec"]["minReplicaCount"] if pods.count is None else 0
        found.setdefault(pods.name, []).extend(pods_of(pods, pods.count or fewest, priorities))
    return found


def orders(kinds: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Who may arrive before whom: the large ones in every order, between all the small ones before and behind them."""
    large = ("generation", "learner", "redis")
    small = tuple(kind for kind in kinds if kind not in large)
    for order in permutations(large):
        yield small + order
        yield order + small


@pytest.mark.parametrize("preference", PREFERENCES, ids=lambda preference: preference.__name__)
def test_every_pod_finds_its_place_on_the_stated_nodes(stack: Stack, preference: Preference) -> None:
    pods = kinds(stack)
    for nodes in stated(_overlay(stack)):
        for order in orders(tuple(pods)):
            cluster = Cluster(nodes, preference)
            for kind in order:
                cluster.add(pods[kind])
            assert [pod.name for pod in cluster.pending] == [], (order, len(nodes))


def test_nobody_is_evicted_where_preferences_are_heeded(stack: Stack) -> None:
    pods = kinds(stack)
    for nodes in stated(_overlay(stack)):
        for order in orders(tuple(pods)):
            cluster = Cluster(nodes, as_wished)
            for kind in order:
                cluster.add(pods[kind])
            assert [pod.name for pod in cluster.evicted] == [], (order, len(nodes))


def test_replicas_without_end_keep_out_nothing_that_a_run_has_once(stack: Stack) -> None:
    """As many replicas as an autoscaler may ask for, before anything else has come."""
    pods = kinds(stack)
    for nodes in stated(_overlay(stack)):
        cluster = Cluster(nodes, most_even)
        for kind in ("generation", "reward"):
            cluster.add(Pod(f"{kind}-more-{i}", pods[kind][0].labels, pods[kind][0].spec) for i in range(16))
        for each in pods.values():
            cluster.add(each)
        once = [pod for kind in ("learner", "redis", "curriculum") for pod in pods[kind]]
        assert all(pod.priority > 0 for pod in once)
        assert all(pod in cluster.place for pod in once), [pod.name for pod in cluster.pending]


def test_on_tainted_nodes_with_gpus_the_rest_runs_on_others(stack: Stack) -> None:
    """Managed clusters taint nodes with GPUs: what needs none goes to a small node beside them."""
    for nodes in stated(_overlay(stack)):
        tainted = [Node(node.name, node.room, node.labels, (TAINT,)) if GPU in node.room else node for node in nodes]
        plain = Node("plain", {"cpu": 8.0, "memory": quantity("32Gi")})
        cluster = Cluster([*tainted, plain], as_wished)
        cluster.add(pod for each in kinds(stack).values() for pod in each)
        assert cluster.pending == []
        places = {pod.labels[NAME]: GPU in node.room for pod, node in cluster.place.items() if NAME in pod.labels}
        on_gpus = {"generation", "learner"} if any(GPU in node.room for node in nodes) else set()
        assert {name for name, with_gpu in places.items() if with_gpu} == on_gpus


def test_a_pod_of_a_learner_over_several_nodes_has_its_node_to_itself(stack: Stack) -> None:
    if not stack.of_kind("JobSet"):
        return
    (nodes,) = stated("multinode")
    cluster = Cluster(nodes, as_wished)
    cluster.add(pod for each in kinds(stack).values() for pod in each)
    ranks = [pod for pod in cluster.place if pod.labels.get(NAME) == "learner"]
    assert len({cluster.place[pod].name for pod in ranks}) == len(ranks) == 2
    assert all(cluster.free(cluster.place[pod])[GPU] == 0 for pod in ranks)


def test_every_overlay_states_its_nodes() -> None:
    assert all(stated(overlay) for overlay in OVERLAYS)


def _overlay(stack: Stack) -> str:
    """Which one was rendered, by its learner: a JobSet, GPUs, or neither."""
    if stack.of_kind("JobSet"):
        return "multinode"
    (learner,) = [pods for pods in stack.pods() if pods.name == "learner"]
    return "gpu" if GPU in learner.container["resources"]["limits"] else "dev"
