"""Two runs on one cluster: with the component `kueue` one trains and the other waits, and neither holds half a learner.

Kueue itself is not here. Its rule is modelled: a workload is admitted as a whole, where its queue's quota has room.
"""

import shutil
from typing import Any

import pytest
import yaml

from tests.support.kubernetes import K8S, Resource, Stack, needs_kubectl, quantity, render
from tests.support.scheduler import PREFERENCES, Cluster, Node, Pod, Preference, most_even, pods_of

pytestmark = needs_kubectl

GPU = "nvidia.com/gpu"
QUEUE = "kueue.x-k8s.io/queue-name"
NODES = [
    Node(f"node-{i}", {"cpu": 64.0, "memory": quantity("1Ti"), GPU: 8.0}, {"nvidia.com/gpu.present": "true"})
    for i in range(4)
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """The overlay multinode with kueue, and the quotas of the cluster."""
    folder = tmp_path_factory.mktemp("kueue")
    shutil.copytree(K8S, folder / "k8s")
    own = folder / "own"
    own.mkdir()
    choice = {
        "resources": ["../k8s/overlays/multinode", "../k8s/kueue"],
        "components": ["../k8s/components/kueue"],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(choice))
    return Stack(render(own))


def learner(stack: Stack, run: str) -> list[Pod]:
    """All pods of a run's learner."""
    return [
        Pod(f"{run}-{pod.name}", {**pod.labels, "run": run}, pod.spec, pod.priority)
        for pods in stack.pods()
        if pods.owner.startswith("JobSet")
        for pod in pods_of(pods, pods.count or 0, {"routershift-run": 1000})
    ]


def replicas(stack: Stack, run: str) -> list[Pod]:
    (pods,) = [pods for pods in stack.pods() if pods.name == "generation"]
    return [Pod(f"{run}-{pod.name}", pod.labels, pod.spec) for pod in pods_of(pods, pods.count or 0, {})]


class Queue:
    """A LocalQueue, with what is left of the quota behind it."""

    def __init__(self, stack: Stack, name: str) -> None:
        behind = stack.of_kind("LocalQueue")[name]["spec"]["clusterQueue"]
        (group,) = stack.of_kind("ClusterQueue")[behind]["spec"]["resourceGroups"]
        (flavor,) = group["flavors"]
        self.covered: list[str] = group["coveredResources"]
        self.left = {each["name"]: quantity(each["nominalQuota"]) for each in flavor["resources"]}

    def admitted(self, pods: list[Pod]) -> list[Pod]:
        """All pods of a workload, or none."""
        asked: dict[str, float] = {}
        for pod in pods:
            for name, amount in pod.requests.items():
                asked[name] = asked.get(name, 0.0) + amount
        assert asked.keys() <= set(self.covered), "Kueue admits nothing that asks for what its queue does not cover"
        if any(amount > self.left[name] for name, amount in asked.items()):
            return []
        self.left = {name: left - asked.get(name, 0.0) for name, left in self.left.items()}
        return pods


def queued(resource: Resource) -> Any:
    return resource["metadata"]["labels"].get(QUEUE)


def test_what_takes_gpus_is_queued_and_the_learner_waits_as_a_whole(stack: Stack) -> None:
    assert queued(stack.of_kind("JobSet")["learner"]) == "learners"
    assert stack.of_kind("JobSet")["learner"]["spec"]["suspend"] is True
    assert queued(stack.of_kind("Deployment")["generation"]) == "generation"
    others = [each for each in stack.of_kind("Deployment").values() if each["metadata"]["name"] != "generation"]
    assert not any(queued(each) for each in others)
    flavors = stack.of_kind("ResourceFlavor")
    for each in stack.of_kind("ClusterQueue").values():
        (group,) = each["spec"]["resourceGroups"]
        assert {flavor["name"] for flavor in group["flavors"]} <= flavors.keys()
        assert [resource["name"] for resource in group["flavors"][0]["resources"]] == group["coveredResources"]


def test_without_it_two_learners_hold_a_half_each() -> None:
    """The fault: nodes of two learners arrive in turns, and none of them lets go."""
    ranks = [
        Pod(f"{run}-{i}", {"run": run}, {"containers": [{"resources": {"limits": {"cpu": "32", GPU: "8"}}}]}, 1000)
        for i in range(2)
        for run in ("a", "b")
    ]
    cluster = Cluster(NODES[:3], most_even)
    cluster.add(ranks)
    assert {pod.labels["run"] for pod in cluster.pending} == {"b"}
    assert {pod.labels["run"] for pod in cluster.place} == {"a", "b"}


@pytest.mark.parametrize("preference", PREFERENCES, ids=lambda preference: preference.__name__)
@pytest.mark.parametrize("first", ["learners", "generation"])
def test_of_two_runs_one_trains_and_the_other_holds_no_node(stack: Stack, preference: Preference, first: str) -> None:
    learners, generation = Queue(stack, "learners"), Queue(stack, "generation")
    admitted = {
        "learners": [pod for run in ("a", "b") for pod in learners.admitted(learner(stack, run))],
        # Replicas are admitted one by one.
        "generation": [
            pod for run in ("a", "b") for each in replicas(stack, run) for pod in generation.admitted([each])
        ],
    }
    assert {pod.labels["run"] for pod in admitted["learners"]} == {"a"}
    assert len(admitted["learners"]) == 2
    cluster = Cluster(NODES, preference)
    for kind in sorted(admitted, key=lambda kind: kind != first):
        cluster.add(admitted[kind])
    assert cluster.pending == []
    assert sum(pod.name.startswith("a-Deployment") for pod in cluster.place) == len(replicas(stack, "a")) == 4


def test_quotas_are_those_of_the_nodes_and_of_whole_learners(stack: Stack) -> None:
    learners, generation = Queue(stack, "learners"), Queue(stack, "generation")
    for name in learners.left:
        assert learners.left[name] + generation.left[name] <= sum(node.room[name] for node in NODES), name
    one = sum(pod.requests[GPU] for pod in learner(stack, "a"))
    assert learners.left[GPU] % one == 0
