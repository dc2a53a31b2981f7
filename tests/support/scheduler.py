"""Where Kubernetes' scheduler puts pods: a model of its filters, its preferences and its preemption, on given nodes.

Modelled are requests (GPUs by their limits), node selectors, taints, topology spread constraints, pod affinity and
anti-affinity, and priorities, after https://kubernetes.io/docs/concepts/scheduling-eviction/. One namespace, no
daemons, and no budget for disruptions, which preemption overrides where it must.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.kubernetes import Pods, quantity, selects

HOSTNAME = "kubernetes.io/hostname"
_EVICTING = ("NoSchedule", "NoExecute")


@dataclass(frozen=True)
class Node:
    """A node: what pods may ask of it, and what it says of itself."""

    name: str
    room: Mapping[str, float]  # cores, bytes and devices that are allocatable
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, str]] = ()

    def domain(self, key: str) -> str | None:
        """The node's topology domain by a label; its name is its hostname."""
        return self.name if key == HOSTNAME else self.labels.get(key)


@dataclass(frozen=True, eq=False)
class Pod:
    """One pod. Pods are told apart by identity."""

    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    priority: int = 0

    @property
    def requests(self) -> dict[str, float]:
        """What is asked for: a limit without a request is one."""
        asked: dict[str, float] = {}
        for container in self.spec["containers"]:
            resources = container.get("resources", {})
            for name, amount in (resources.get("limits", {}) | resources.get("requests", {})).items():
                asked[name] = asked.get(name, 0.0) + quantity(amount)
        return asked

    def terms(self, kind: str, strength: str) -> list[Mapping[str, Any]]:
        """Terms of `podAffinity` or `podAntiAffinity`, `required` or `preferred`."""
        rules = self.spec.get("affinity", {}).get(kind, {})
        return list(rules.get(f"{strength}DuringSchedulingIgnoredDuringExecution", ()))


# How good a node is for a pod, among those on which it fits: the higher, the better.
Preference = Callable[["Cluster", Pod, Node], float]


class Cluster:
    """Nodes, and the pods on them. Every call of `add` schedules until nothing changes any more."""

    def __init__(self, nodes: Sequence[Node], preference: Preference) -> None:
        self.nodes, self.preference = nodes, preference
        self.place: dict[Pod, Node] = {}
        self.pending: list[Pod] = []
        self.evicted: list[Pod] = []  # each time; an evicted pod is pending again

    def add(self, pods: Iterable[Pod]) -> None:
        """Schedules by priority, then in the order of arrival; who finds no room may evict who has a lower priority."""
        self.pending += pods
        while any(self._schedule(pod) for pod in sorted(self.pending, key=lambda pod: -pod.priority)):
            pass

    def on(self, node: Node) -> list[Pod]:
        return [pod for pod, place in self.place.items() if place is node]

    def in_domain(self, key: str, domain: str | None) -> list[Pod]:
        return [pod for pod, place in self.place.items() if place.domain(key) == domain]

    def free(self, node: Node) -> dict[str, float]:
        asked = [pod.requests for pod in self.on(node)]
        return {name: room - sum(each.get(name, 0.0) for each in asked) for name, room in node.room.items()}

    def fits(self, pod: Pod, node: Node) -> bool:
        """Whether every filter lets the pod onto the node."""
        free = self.free(node)
        return (
            _is_meant_for(pod, node)
            and all(amount <= free.get(name, 0.0) + 1e-9 for name, amount in pod.requests.items())
            and all(self._is_even(pod, node, each) for each in _spread(pod, "DoNotSchedule"))
            and self._has_company(pod, node)
            and self._is_apart(pod, node)
        )

    def _schedule(self, pod: Pod) -> bool:
        feasible = [node for node in self.nodes if self.fits(pod, node)]
        if not feasible:
            return self._preempt(pod)
        self.pending.remove(pod)
        self.place[pod] = max(feasible, key=lambda node: self.preference(self, pod, node))
        return True

    def _preempt(self, pod: Pod) -> bool:
        """Evicts the fewest pods, and those of the lowest priority, whose place lets the pod in."""
        found = [(victims, node) for node in self.nodes if (victims := self._victims(pod, node))]
        if not found:
            return False
        victims, node = min(found, key=lambda each: (max(victim.priority for victim in each[0]), len(each[0])))
        for victim in victims:
            del self.place[victim]
        self.pending.remove(pod)
        self.place[pod] = node
        self.pending += victims
        self.evicted += victims
        return True

    def _victims(self, pod: Pod, node: Node) -> list[Pod]:
        """Who has to leave the node for the pod; nobody where that does not help."""
        lower = sorted(
            (each for each in self.on(node) if each.priority < pod.priority), key=lambda each: -each.priority
        )
        before = dict(self.place)
        victims: list[Pod] = []
        try:
            for each in lower:
                del self.place[each]
            if self.fits(pod, node):
                for each in lower:  # who need not leave, stays
                    self.place[each] = node
                    if not self.fits(pod, node):
                        del self.place[each]
                        victims.append(each)
        finally:
            self.place = before
        return victims

    def _is_even(self, pod: Pod, node: Node, constraint: Mapping[str, Any]) -> bool:
        key = constraint["topologyKey"]
        domains = {each.domain(key) for each in self.nodes if _is_selected(pod, each)} - {None}
        if node.domain(key) not in domains:
            return False
        counts = {domain: self.matching(constraint["labelSelector"], key, domain) for domain in domains}
        own = int(selects(constraint["labelSelector"], pod.labels))
        return counts[node.domain(key)] + own - min(counts.values()) <= int(constraint["maxSkew"])

    def matching(self, selector: Mapping[str, Any], key: str, domain: str | None) -> int:
        """Pods in a domain that a selector selects."""
        return sum(selects(selector, pod.labels) for pod in self.in_domain(key, domain))

    def _has_company(self, pod: Pod, node: Node) -> bool:
        """Required affinity. The first of a group that wants its own company may be alone."""
        return all(
            node.domain(term["topologyKey"]) is not None
            and (
                self.matching(term["labelSelector"], term["topologyKey"], node.domain(term["topologyKey"])) > 0
                or (
                    selects(term["labelSelector"], pod.labels)
                    and not any(selects(term["labelSelector"], other.labels) for other in self.place)
                )
            )
            for term in pod.terms("podAffinity", "required")
        )

    def _is_apart(self, pod: Pod, node: Node) -> bool:
        """Required anti-affinity, of the pod and of those that are there."""
        own = all(
            not self.matching(term["labelSelector"], term["topologyKey"], node.domain(term["topologyKey"]))
            for term in pod.terms("podAntiAffinity", "required")
        )
        return own and not any(
            selects(term["labelSelector"], pod.labels)
            and node.domain(term["topologyKey"]) == place.domain(term["topologyKey"])
            for other, place in self.place.items()
            for term in other.terms("podAntiAffinity", "required")
        )


def as_wished(cluster: Cluster, pod: Pod, node: Node) -> float:
    """The pod's own soft wishes: ScheduleAnyway constraints, preferred affinity and anti-affinity."""
    score = 0.0
    for constraint in _spread(pod, "ScheduleAnyway"):
        key = constraint["topologyKey"]
        score -= 100.0 * cluster.matching(constraint["labelSelector"], key, node.domain(key))
    for kind, sign in (("podAffinity", 1.0), ("podAntiAffinity", -1.0)):
        for each in pod.terms(kind, "preferred"):
            term = each["podAffinityTerm"]
            key = term["topologyKey"]
            score += sign * each["weight"] * cluster.matching(term["labelSelector"], key, node.domain(key))
    return score


def most_even(cluster: Cluster, pod: Pod, node: Node) -> float:
    """As the scheduler's defaults lean: where the fewest of its kind are, then where most is free."""
    same = sum(other.labels == pod.labels for other in cluster.on(node))
    return _free_share(cluster, node) - 100.0 * same


def fullest(cluster: Cluster, pod: Pod, node: Node) -> float:
    """As MostAllocated leans: where the least is free."""
    return -_free_share(cluster, node)


PREFERENCES: tuple[Preference, ...] = (as_wished, most_even, fullest)


def pods_of(template: Pods, count: int, priorities: Mapping[str, int]) -> list[Pod]:
    """The pods of a template, with the value of their priority class.

    Raises:
        KeyError: there is no such class, and the API server would refuse the pods.
    """
    name = template.spec.get("priorityClassName")
    priority = priorities[name] if name else 0
    return [Pod(f"{template.owner}-{index}", template.labels, template.spec, priority) for index in range(count)]


def _is_meant_for(pod: Pod, node: Node) -> bool:
    """Node selector, and taints that keep the pod away."""
    tolerations = pod.spec.get("tolerations", [])
    return _is_selected(pod, node) and all(
        any(_tolerates(toleration, taint) for toleration in tolerations)
        for taint in node.taints
        if taint["effect"] in _EVICTING
    )


def _is_selected(pod: Pod, node: Node) -> bool:
    assert "nodeAffinity" not in pod.spec.get("affinity", {}), "node affinity: teach it to the model"
    return selects({"matchLabels": pod.spec.get("nodeSelector", {})}, node.labels)


def _tolerates(toleration: Mapping[str, str], taint: Mapping[str, str]) -> bool:
    return (
        toleration.get("effect", taint["effect"]) == taint["effect"]
        and toleration.get("key", taint["key"]) == taint["key"]
        and (toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", ""))
    )


def _spread(pod: Pod, otherwise: str) -> list[Mapping[str, Any]]:
    return [
        constraint
        for constraint in pod.spec.get("topologySpreadConstraints", [])
        if constraint["whenUnsatisfiable"] == otherwise
    ]


def _free_share(cluster: Cluster, node: Node) -> float:
    free = cluster.free(node)
    return sum(free[name] / room for name, room in node.room.items() if room) / len(node.room)
