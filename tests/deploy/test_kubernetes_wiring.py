"""What belongs together across the manifests of deploy/k8s: selectors, files, servers, streams, volumes and rules."""

import re
import subprocess
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from redis import Redis, RedisError

from services.cli.local.redis import find_server
from services.cli.recipe import Recipe
from shared.recipes import redis_of
from shared.streams.keys import STAGES
from tests.support.kubernetes import (
    K8S,
    NAME,
    PORTS,
    SERVICES,
    Peer,
    Pods,
    Stack,
    may_connect,
    needs_kubectl,
    quantity,
    selects,
    server_settings,
)

pytestmark = needs_kubectl

GPU = "nvidia.com/gpu"


def test_services_are_headless_and_find_their_pods(stack: Stack) -> None:
    everyone = list(stack.pods())
    for name, service in stack.of_kind("Service").items():
        assert service["spec"]["clusterIP"] == "None", name
        found = [pods for pods in everyone if selects({"matchLabels": service["spec"]["selector"]}, pods.labels)]
        assert [pods.name for pods in found] == [name]
        for port in service["spec"]["ports"]:
            assert port["port"] == found[0].ports[port["targetPort"]], name
    curriculum = stack.services_pods()["curriculum"].environment
    for server in ("generation", "environments", "reward"):
        address = curriculum[f"ROUTERSHIFT_CURRICULUM__{server.upper()}_ADDRESS"]
        assert address == f"dns:///{server}:{PORTS[server][0]}"
    environments = stack.services_pods()["environments"].environment
    assert environments["ROUTERSHIFT_ENVIRONMENTS__GENERATION_ADDRESS"] == f"dns:///generation:{PORTS['generation'][0]}"


def test_selectors_select_what_they_are_for(stack: Stack) -> None:
    everyone = list(stack.pods())
    for kind in ("Deployment", "StatefulSet"):
        for each in stack.of_kind(kind).values():
            assert selects(each["spec"]["selector"], each["spec"]["template"]["metadata"]["labels"]), each["metadata"]
    for pods in everyone:
        for constraint in pods.spec.get("topologySpreadConstraints", []):
            assert selects(constraint["labelSelector"], pods.labels), pods.owner
    budgets = stack.of_kind("PodDisruptionBudget")
    assert budgets.keys() == {*SERVICES, "redis"}
    for name, budget in budgets.items():
        found = [pods for pods in everyone if selects(budget["spec"]["selector"], pods.labels)]
        assert {pods.name for pods in found} == {name}
        if found[0].owner.startswith("JobSet"):  # which can have nothing else, and needs all of its pods
            assert budget["spec"]["minAvailable"] == sum(pods.count or 0 for pods in found)
        else:  # with minAvailable the only pod of a service would stop every drain of its node
            assert budget["spec"]["maxUnavailable"] == 1, name
    for each in stack.of_kind("ServiceMonitor").values():
        found_services = {
            name: service
            for name, service in stack.of_kind("Service").items()
            if selects(each["spec"]["selector"], service["metadata"].get("labels", {}))
        }
        assert found_services.keys() == set(SERVICES)
        (endpoint,) = each["spec"]["endpoints"]
        for name, service in found_services.items():
            assert service["metadata"]["labels"][each["spec"]["jobLabel"]] == name
            assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_what_pods_refer_to_is_there_or_in_the_readme(stack: Stack) -> None:
    readme = (K8S / "README.md").read_text()
    issued = {each["spec"]["secretName"] for each in stack.of_kind("Certificate").values()}
    for pods in stack.pods():
        for volume in pods.spec["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in stack.of_kind("ConfigMap"), (pods.owner, volume)
            elif "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in stack.of_kind("PersistentVolumeClaim"), volume
            elif "secret" in volume:
                name = volume["secret"]["secretName"]
                assert name in issued or f"`{name}`" in readme, (pods.owner, name)
        own = (each for each in (pods.first, pods, pods.beside) if each)
        mounted = {each["mount"]["name"] for container in own for each in container.mounts.values()}
        assert mounted >= {volume["name"] for volume in pods.spec["volumes"]}, pods.owner
    for pods in stack.containers():
        # Whole folders: a file that is mounted by its subPath is never renewed.
        assert not any("subPath" in each["mount"] for each in pods.mounts.values()), pods.owner
        for value in pods.environment.values():
            if value.startswith("/etc/"):
                file, secret = Path(value), pods.mounts[str(Path(value).parent)]["secret"]["secretName"]
                keys = "`tls.crt`, `tls.key`, `ca.crt`"
                if secret not in issued:  # the row of the table that says what to put there
                    keys = re.findall(rf"^\| [^|]*`{secret}`[^|]* \| ([^|]+) \|", readme, re.MULTILINE)[0]
                assert f"`{file.name}`" in keys, (pods.owner, value)


def test_only_the_learner_and_the_curriculum_write_the_run(stack: Stack, settings: dict[str, Recipe]) -> None:
    readers: set[str] = set()
    writers: set[str] = set()
    for pods in stack.pods():
        for path, volume in pods.mounts.items():
            if volume.get("persistentVolumeClaim", {}).get("claimName") == "runs":
                (readers if volume["mount"].get("readOnly") else writers).add(pods.name)
            if path == "/models":
                assert volume["mount"]["readOnly"], pods.owner
    assert writers == {"learner", "curriculum"}
    broadcast = settings["generation"].run.weights_transfer == "broadcast"
    backups = {"backup"} if stack.of_kind("CronJob") else set()
    assert readers == backups | (set() if broadcast else {"generation"})
    assert {each.run.weights_transfer == "broadcast" for each in settings.values()} == {broadcast}
    assert (settings["learner"].learner.transfer.host != "127.0.0.1") == broadcast
    on_gpus = any(GPU in pods.container["resources"]["limits"] for pods in stack.pods())
    modes = ["ReadWriteMany" if on_gpus else "ReadWriteOnce"]  # the overlay for CPUs is for one node
    claims = stack.of_kind("PersistentVolumeClaim").items()
    named = {"runs", "models"} | {f"{each}s" for each in backups}
    assert {name: claim["spec"]["accessModes"] for name, claim in claims} == dict.fromkeys(named, modes)


def test_the_functions_of_redis_are_brought_whenever_they_are_gone_by_their_own_user_alone(stack: Stack) -> None:
    curriculum = stack.services_pods()["curriculum"]
    beside = curriculum.beside
    assert beside is not None
    assert beside.container["args"] == ["functions", "--keep"]
    assert beside.container["image"] == curriculum.container["image"]
    settings = redis_of(beside.environment)
    assert settings.username == "functions"
    tls = settings.url.get_secret_value().startswith("rediss")
    assert tls == (settings.certificate is not None) == bool(stack.of_kind("Certificate"))
    holders = {
        pods.owner
        for pods in stack.containers()
        for each in pods.mounts.values()
        if each.get("secret", {}).get("secretName") == "redis-functions"
    }
    assert holders == {beside.owner}


def test_with_tls_every_server_asks_for_certificates(stack: Stack, settings: dict[str, Recipe]) -> None:
    certificates = stack.of_kind("Certificate")
    for name, tables in settings.items():
        access, redis, pods = tables.access, tables.redis, stack.services_pods()[name]
        if not certificates:
            assert (access.certificate, access.tokens, redis.authority) == (None, None, None)
            continue
        assert access.mutual
        assert access.certificate
        assert pods.mounts[str(access.certificate.parent)]["secret"]["secretName"] == f"tls-{name}"
        assert certificates[name]["spec"]["secretName"] == f"tls-{name}"
        assert name in certificates[name]["spec"]["dnsNames"]
        assert redis.url.get_secret_value().startswith("rediss://redis:")
        assert (redis.authority, redis.certificate) == (access.authority, access.certificate)
        assert pods.ports["health"] == server_settings(settings, name).health_port
        assert bool(access.token) == (name in ("curriculum", "environments"))
        assert bool(access.tokens) == (name != "curriculum")
    if certificates:
        (redis_pods,) = [pods for pods in stack.pods() if pods.name == "redis"]
        included = Path(dict(_arguments(redis_pods))["--include"])
        files = stack.of_kind("ConfigMap")[redis_pods.mounts[str(included.parent)]["configMap"]["name"]]["data"]
        tls = files[included.name]
        assert tls == (K8S.parent / "redis/tls.conf").read_text()  # with which Redis itself is tested
        assert f"port 0\ntls-port {redis_pods.ports['redis']}\n" in tls
        own, issuers = certificates["redis"]["spec"], stack.of_kind("Issuer")
        assert redis_pods.mounts["/etc/redis-tls"]["secret"]["secretName"] == own["secretName"]
        assert "redis" in own["dnsNames"]
        assert {each["spec"]["issuerRef"]["name"] for each in certificates.values()} == issuers.keys()
        assert issuers["routershift"]["spec"]["ca"]["secretName"] == certificates["authority"]["spec"]["secretName"]


def test_who_may_connect_to_whom(stack: Stack) -> None:
    ours, elsewhere = {"kubernetes.io/metadata.name": "routershift"}, {"kubernetes.io/metadata.name": "default"}
    monitoring = {"kubernetes.io/metadata.name": "monitoring"}
    caller = {"kubernetes.io/metadata.name": "app", "routershift.io/generation-client": "true"}
    peers = {pods.name: Peer(pods.labels, ours, pods.ports) for pods in stack.pods() if pods.ports}
    outside = {
        "prometheus": Peer({NAME: "prometheus"}, monitoring, {}),
        "caller": Peer({}, caller, {}),
        "stranger": Peer({NAME: "curriculum"}, elsewhere, {}),
        "intruder": Peer({}, ours, {}),
    }
    policies = list(stack.of_kind("NetworkPolicy").values())
    nothing = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert stack.of_kind("NetworkPolicy")["default-deny"]["spec"] == nothing
    allowed = {
        (client, server, name)
        for client, peer in (peers | outside).items()
        for server in peers
        for name, port in peers[server].ports.items()
        if may_connect(policies, ours, peer, peers[server], port)
    }
    expected = {(service, "redis", "redis") for service in SERVICES}
    expected |= {("prometheus", service, "metrics") for service in SERVICES}
    expected |= {("curriculum", server, "grpc") for server in ("generation", "environments", "reward")}
    expected |= {(client, "generation", "grpc") for client in ("caller", "environments")}
    expected.add(("generation", "reward", "grpc"))  # for early scores
    if stack.of_kind("JobSet"):
        expected |= {("learner", "learner", name) for name in peers["learner"].ports}  # ranks, on any port
    if any(name.startswith("weights-transfer") for name in stack.of_kind("NetworkPolicy")):
        both = ("learner", "generation")
        expected |= {(one, other, name) for one in both for other in both for name in peers[other].ports}
    assert allowed == expected
    world, dns = Peer({}, elsewhere, {}), Peer({}, {"kubernetes.io/metadata.name": "kube-system"}, {})
    for pods in stack.pods():
        peer = Peer(pods.labels, ours, pods.ports)
        assert may_connect(policies, ours, peer, world, 443) == (pods.name == "model"), pods.owner
        assert may_connect(policies, ours, peer, dns, 443) == (pods.name == "model"), pods.owner
        assert all(may_connect(policies, ours, peer, dns, 53, protocol) for protocol in ("UDP", "TCP")), pods.owner


def test_replicas_follow_the_backlog(stack: Stack, settings: dict[str, Recipe], repository: Path) -> None:
    metrics = (repository / "docs/reference/metrics.md").read_text()
    for name, scaled in stack.of_kind("ScaledObject").items():
        spec = scaled["spec"]
        assert spec["scaleTargetRef"]["name"] == name
        assert "replicas" not in stack.of_kind("Deployment")[name]["spec"], "apply would undo what the autoscaler did"
        assert spec["minReplicaCount"] >= 1
        assert spec["fallback"]["replicas"] >= spec["minReplicaCount"]
        (trigger,) = spec["triggers"]
        match = re.fullmatch(r'max\((\w+)\{namespace="(\w+)", stream="(\w+)"\}\)', trigger["metadata"]["query"])
        assert match, trigger["metadata"]["query"]
        metric, namespace, stream = match.groups()
        (row,) = [row for row in metrics.splitlines() if f"`{metric}`" in row]
        assert stream in row
        assert stream == {"generation": "prompts", "reward": "rollouts"}[name]
        assert namespace == scaled["metadata"]["namespace"]
        tables = settings[name]
        full = {
            "generation": tables.generation.max_num_seqs / tables.rollout.n,
            "reward": tables.reward.groups_in_flight,
        }
        assert float(trigger["metadata"]["threshold"]) == full[name]
        (down,) = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["policies"]
        assert down["periodSeconds"] > stack.services_pods()[name].grace


def test_redis_has_room_for_the_streams_and_for_rewriting_its_log(stack: Stack, settings: dict[str, Recipe]) -> None:
    (config,) = [each["data"]["redis.conf"] for n, each in stack.of_kind("ConfigMap").items() if n.startswith("redis")]
    (redis,) = [pods for pods in stack.pods() if pods.name == "redis"]
    without_tls = [part for pair in _arguments(redis) if pair[0] != "--include" for part in pair]
    answers = _redis_settings(config, tuple(without_tls))
    assert answers["maxmemory-policy"] == "noeviction"
    assert (answers["appendonly"], answers["appendfsync"]) == ("yes", "always")
    assert "\ndir /data\n" in config
    assert "volumeClaimTemplate" in redis.mounts["/data"]
    room = int(answers["maxmemory"])
    assert (
        room >= (len(set(STAGES.values())) + 1) * settings["learner"].streams.max_bytes
    )  # what the start of a run asks for
    assert quantity(redis.container["resources"]["limits"]["memory"]) >= 1.8 * room


def _arguments(redis: Pods) -> list[tuple[str, str]]:
    """Those of redis-server after the name of its file: options and values."""
    arguments = redis.container["args"][1:]
    return list(zip(arguments[::2], arguments[1::2], strict=True))


@cache
def _redis_settings(config: str, arguments: tuple[str, ...]) -> dict[str, str]:
    """What a real server makes of the file, on a socket of its own and without the files of the cluster."""
    with TemporaryDirectory() as folder:
        socket = Path(folder) / "redis.sock"
        (Path(folder) / "users.acl").write_text("user default on nopass ~* &* +@all\n")
        file = Path(folder) / "redis.conf"
        file.write_text(config.replace("/data", folder).replace("/etc/redis-acl", folder))
        command = [find_server(), str(file), *arguments, "--port", "0", "--unixsocket", str(socket)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                for _ in range(500):
                    try:
                        with Redis.from_url(f"unix://{socket}", decode_responses=True) as client:
                            return dict(client.config_get("*"))
                    except RedisError:
                        assert server.poll() is None, "redis-server ended; it says why on stderr"
                        time.sleep(0.02)
            finally:
                server.terminate()
    raise AssertionError("redis-server did not answer")
