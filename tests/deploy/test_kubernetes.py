"""Every overlay of deploy/k8s with every choice of components: it renders, schemas accept it, its pods keep our rules.

The rules are what schemas do not know, and what we want of every pod.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from services.cli.recipe import Recipe
from shared.recipes import load
from shared.streams.releases import of_words
from tests.support.kubernetes import (
    K8S,
    OVERLAYS,
    PORTS,
    SERVICES,
    Pods,
    Resource,
    Stack,
    fault,
    needs_kubectl,
    quantity,
    render,
    server_settings,
)

pytestmark = needs_kubectl

GPU = "nvidia.com/gpu"
RDMA = "rdma/hca"
PULL_SECONDS = 600  # of an image for GPUs
RECIPE = "/etc/routershift/recipe.toml"


def test_schemas_accept_everything(stack: Stack) -> None:
    assert [found for each in stack.resources if (found := fault(json.dumps(each, sort_keys=True)))] == []


def test_the_schema_check_is_strict() -> None:
    misspelt = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "sepc": {}}
    assert "sepc" in (fault(json.dumps(misspelt)) or "")
    scaled: Resource = {"scaleTargetRef": {"name": "a"}, "triggers": [], "maxReplicas": 1}
    head = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "a"}}
    assert fault(json.dumps({**head, "spec": scaled}))
    assert "Unknown" in (fault(json.dumps({**head, "kind": "Unknown"})) or "")


def test_pods_meet_the_restricted_standard_and_get_no_token(stack: Stack) -> None:
    namespace = stack.of_kind("Namespace")["routershift"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    of_the_cluster = ("Namespace", "PriorityClass")
    everywhere = {each["metadata"].get("namespace") for each in stack.resources if each["kind"] not in of_the_cluster}
    assert everywhere == {"routershift"}
    for pods in stack.containers():
        spec, pod, container = pods.spec, pods.spec["securityContext"], pods.container["securityContext"]
        assert spec["automountServiceAccountToken"] is False, pods.owner
        assert spec["enableServiceLinks"] is False, pods.owner  # else a Service would look like a setting of ours
        assert not any(spec.get(host) for host in ("hostNetwork", "hostPID", "hostIPC")), pods.owner
        assert pod["runAsNonRoot"], pods.owner
        assert pod["runAsUser"] >= 999, pods.owner
        assert pod["fsGroup"] == pod["runAsGroup"], pods.owner
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, pods.owner
        assert container["allowPrivilegeEscalation"] is False, pods.owner
        assert container["readOnlyRootFilesystem"] is True, pods.owner
        locks = {"add": ["IPC_LOCK"]} if RDMA in pods.container["resources"]["limits"] else {}
        assert container["capabilities"] == {"drop": ["ALL"], **locks}, pods.owner


def test_pods_ask_for_what_they_need_and_not_for_more_than_their_limit(stack: Stack) -> None:
    for pods in stack.containers():
        requests, limits = (pods.container["resources"][side] for side in ("requests", "limits"))
        assert requests.keys() >= {"cpu", "memory"}, pods.owner
        for name, amount in requests.items():
            assert quantity(amount) <= quantity(limits[name]), (pods.owner, name)
        if GPU in limits:
            assert pods.spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}, pods.owner
            assert [toleration["key"] for toleration in pods.spec["tolerations"]] == [GPU], pods.owner
        in_memory = [
            quantity(volume["emptyDir"]["sizeLimit"])
            for volume in pods.mounts.values()
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        ]
        assert sum(in_memory) < quantity(limits["memory"]), pods.owner  # they count
        assert all("sizeLimit" in v["emptyDir"] for v in pods.spec["volumes"] if "emptyDir" in v), pods.owner
    claims = [*stack.of_kind("PersistentVolumeClaim").values()]
    claims += [claim for each in stack.of_kind("StatefulSet").values() for claim in _templates(each)]
    assert all(quantity(claim["spec"]["resources"]["requests"]["storage"]) >= 2**30 for claim in claims)


def test_a_pod_that_crash_loops_gets_the_recipe_that_mends_it(stack: Stack) -> None:
    """OrderedReady, the default, would wait for it to be ready first."""
    for name, stateful_set in stack.of_kind("StatefulSet").items():
        assert stateful_set["spec"].get("podManagementPolicy") == "Parallel", name


def _templates(stateful_set: Resource) -> list[Resource]:
    return list(stateful_set["spec"].get("volumeClaimTemplates", []))


def test_settings_agree_with_ports_probes_and_files(stack: Stack, settings: dict[str, Recipe]) -> None:
    assert settings.keys() == set(SERVICES)
    for name, pods in stack.services_pods().items():
        mine, container = server_settings(settings, name), pods.container
        assert (mine.port, mine.metrics_port) == (pods.ports["grpc"], pods.ports["metrics"]) == PORTS[name]
        assert mine.host == "0.0.0.0"  # noqa: S104
        probes = {key: container[f"{key}Probe"] for key in ("startup", "readiness", "liveness")}
        assert {probe["grpc"]["port"] for probe in probes.values()} == {mine.health_port or mine.port}, name
        # The service ends itself first, and says why.
        patience = {key: probe["periodSeconds"] * probe.get("failureThreshold", 3) for key, probe in probes.items()}
        assert patience["startup"] > mine.start_seconds, name
        assert patience["liveness"] > mine.watchdog_seconds, name
        if pods.owner.startswith("Deployment"):  # else it is called failed while it starts, within its time
            deployment = stack.of_kind("Deployment")[name]
            assert deployment["spec"].get("progressDeadlineSeconds", 600) >= patience["startup"] + PULL_SECONDS, name
    for pods in stack.pods():
        if pods.name not in SERVICES:
            continue
        assert RECIPE in " ".join(pods.container["args"]), pods.owner
        assert f"serve {pods.name}" in " ".join(pods.container["args"]), pods.owner
        own = settings[pods.name]
        # HOME too; nothing else of the root can be written.
        assert "emptyDir" in pods.mounts["/tmp"], pods.owner  # noqa: S108
        assert pods.mounts["/runs"], pods.owner
        assert str(own.run.folder) == "/runs", pods.owner
        assert "id" in own.run.model_fields_set, "services of one run must agree on its name"
        if pods.name in ("generation", "learner"):
            assert own.run.model_folder().is_relative_to("/models"), own.run.model
            assert "/models" in pods.mounts, pods.owner
            assert pods.mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory", pods.owner  # noqa: S108


def test_a_pod_may_drain_for_as_long_as_its_service_does(stack: Stack, settings: dict[str, Recipe]) -> None:
    for pods in stack.pods():
        if pods.name not in SERVICES:
            continue
        mine, tables = server_settings(settings, pods.name), settings[pods.name]
        # After the drain the service has watchdog_seconds to close.
        assert pods.grace >= mine.drain_seconds + mine.watchdog_seconds, pods.owner
        if pods.name == "reward":
            assert mine.drain_seconds > tables.redis.outage_seconds + 2 * tables.reward.timeout_seconds
        elif pods.name == "generation":
            assert (
                mine.drain_seconds > tables.redis.outage_seconds + tables.rollout.max_tokens / 10
            )  # ten tokens a second
        elif pods.name == "learner":
            assert mine.drain_seconds > tables.redis.outage_seconds + tables.learner.checkpoints.disk_seconds


def test_images_are_those_of_the_dockerfile(stack: Stack) -> None:
    dockerfile = (K8S.parent / "docker" / "Dockerfile").read_text()
    parents = {target: parent for parent, target in re.findall(r"^FROM (\S+) AS (\S+)$", dockerfile, re.M | re.I)}
    version = tomllib.loads((K8S.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    for pods in stack.containers():
        image, tag = pods.container["image"].rsplit(":", 1)
        if pods.name in ("redis", "backup"):
            assert image == "redis"
            release = of_words(f"Redis server v={tag.removesuffix('-bookworm')}")
            assert release is not None, f"{tag} names a line, whose release may be any"
            assert release.is_fixed, release.warning
        else:
            assert image.startswith("localhost/"), "a public registry may have it, from anyone"
            origin = target = image.removeprefix("localhost/routershift/")
            assert target in parents, image
            while origin in parents:
                origin = parents[origin]
            if not pods.owner.endswith("/init"):  # what waits for a model has the image of what comes after
                # The others' torch knows no GPU.
                assert (origin == "${GPU_IMAGE}") == (GPU in pods.container["resources"]["limits"]), pods.owner
            assert tag == version


@pytest.mark.parametrize("folder", [*(f"overlays/{overlay}" for overlay in OVERLAYS), "fill-models"])
def test_registry_digests_and_secret_are_named_in_one_place(folder: str, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s/components/images/kustomization.yaml"
    component = yaml.safe_load(file.read_text())
    for image in component["images"]:
        image["newName"] = image["newName"].replace("localhost", "registry.example")
        image["digest"] = f"sha256:{'0' * 64}"
        del image["newTag"]
    file.write_text(yaml.safe_dump(component))
    choice = {"resources": [f"../k8s/{folder}"], "components": ["../k8s/components/pull-secret"]}
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(yaml.safe_dump(choice))
    found = list(Stack(render(own)).containers())
    images = {pods.container["image"] for pods in found}
    ours = re.compile(r"registry\.example/routershift/[a-z-]+@sha256:0{64}")
    assert all(ours.fullmatch(image) or image.startswith("redis:") for image in images), images
    assert all(pods.spec["imagePullSecrets"] == [{"name": "registry"}] for pods in found)


def test_gpus_are_as_many_as_the_processes_that_use_them(stack: Stack, settings: dict[str, Recipe]) -> None:
    for pods in stack.pods():
        gpus = int(pods.container["resources"]["limits"].get(GPU, 0))
        if pods.name == "generation":
            assert gpus in (0, settings["generation"].generation.vllm.tensor_parallel_size)
        elif pods.name == "learner":
            learner = settings["learner"].learner
            assert (gpus > 0) == (learner.device == "cuda")
            if pods.owner.startswith("StatefulSet"):
                assert gpus in (0, learner.parallel.processes)
        else:
            assert gpus == 0, pods.owner


def _torchrun(pods: Pods, folder: Path) -> Any:
    """The arguments that torchrun gets, where the pod's command is really run with a torchrun that prints them."""
    fake = folder / "torchrun"
    fake.write_text('#!/bin/sh\nfor argument; do printf "%s\\n" "$argument"; done\n')
    fake.chmod(0o755)
    command = [*pods.container["command"], *pods.container["args"]]
    assert command[:2] == ["tini", "--"]
    path = f"{folder}:{os.environ['PATH']}"
    ran = subprocess.run(
        command[2:], env={"PATH": path, "JOB_COMPLETION_INDEX": "0"}, capture_output=True, text=True, check=True
    )
    return get_args_parser().parse_args(ran.stdout.splitlines())


def test_the_ranks_of_a_learner_over_several_nodes_find_each_other(
    stack: Stack, settings: dict[str, Recipe], tmp_path: Path
) -> None:
    if not (sets := stack.of_kind("JobSet")):
        assert "learner" in stack.of_kind("StatefulSet")
        return
    ranks = {pods.owner.rsplit("/")[-1]: pods for pods in stack.pods() if pods.owner.startswith("JobSet")}
    network = sets["learner"]["spec"]["network"]
    assert network["enableDNSHostnames"]
    assert network["publishNotReadyAddresses"]  # the leader is ready once all are there
    nodes, ports = sum(pods.count or 0 for pods in ranks.values()), set()
    for name, first in (("leader", 0), ("workers", 1)):
        pods, arguments = ranks[name], _torchrun(ranks[name], tmp_path)
        assert int(arguments.nnodes) == nodes
        assert arguments.node_rank == first
        assert int(arguments.nproc_per_node) == int(pods.container["resources"]["limits"][GPU])
        ports.add(arguments.master_port)
        assert arguments.master_addr == f"learner-leader-0-0.{network['subdomain']}"
        assert server_settings(settings, "learner").drain_seconds < arguments.shutdown_timeout < pods.grace
        assert arguments.training_script_args == ["serve", "learner", "--recipe", RECIPE]
        assert (arguments.module, arguments.training_script) == (True, "services.cli.main")
    assert len(ports) == 1
    assert ranks["leader"].count == 1
    assert not ranks["workers"].ports  # nothing serves there
    assert ranks["workers"].environment.items() <= ranks["leader"].environment.items()
    assert not any("secret" in volume for volume in ranks["workers"].spec["volumes"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_recipe_is_a_recipe_of_a_whole_run(overlay: str) -> None:
    recipe = load(Recipe, K8S / "overlays" / overlay / "recipe.toml", {})
    assert recipe.learner.uses_traces
    if overlay == "dev":
        demo = tomllib.loads((K8S.parent / "recipes" / "countdown.toml").read_text())
        ours = tomllib.loads((K8S / "overlays/dev/recipe.toml").read_text())
        ours["run"].pop("id")
        assert ours["run"].pop("model") == "/models/countdown"
        demo["run"].pop("model")
        demo["generation"].pop("max_num_seqs")  # replicas have the size that components/keda counts with
        assert ours == demo
