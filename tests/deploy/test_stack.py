"""The images and the compose file, really built and run: `make test-deploy`. Grafana is left out: Debian has none."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.draw import Board, Window, without_data
from deploy.grafana.write import FOLDER
from services.cli import health
from tests.support.containers import ROOT, Engine, until

pytestmark = [
    pytest.mark.skipif(os.environ.get("DEPLOY") != "1", reason="builds images for minutes: run make test-deploy"),
    pytest.mark.timeout(5400),
]

STEPS = 5
ENGINE = os.environ.get("ENGINE", "torch")
SAMPLER = {"torch": "learner", "vllm": "generation-cpu"}[ENGINE]  # the image that has the engine
TARGETS = list(dict.fromkeys(["curriculum", "environments", "reward", "learner", SAMPLER]))
SIZES = {
    "curriculum": 700_000_000,
    "environments": 700_000_000,
    "reward": 300_000_000,
    "learner": 1_500_000_000,
}  # bytes
SERVICES = (
    "redis",
    "reward",
    "environments",
    "learner",
    "generation",
    "curriculum",
    "prometheus",
    "alertmanager",
    "proxy",
)
_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 50051), 5)
except OSError:
    print("closed")
else:
    print("open")
"""
_FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


class Stack:
    """The compose file on an engine. Prometheus is on the internal network only, so a container asks it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def container(self, service: str) -> str:
        labels = {"project": self.engine.environment["COMPOSE_PROJECT_NAME"], "service": service}
        chosen = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        return self.engine.docker("ps", "--quiet", *chosen).strip()

    def state(self, service: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.engine.docker("inspect", self.container(service)))
        return found[0]

    def healthy(self, service: str) -> bool:
        return bool(self.state(service)["State"]["Health"]["Status"] == "healthy")

    def fetch(self, url: str) -> Any:
        return json.loads(self.engine.docker("exec", self.container("curriculum"), "python3", "-c", _FETCH, url))

    def value(self, metric: str) -> float:
        """The largest value of a metric now; -1 where there is none."""
        answer = self.fetch(f"http://prometheus:9090/api/v1/query?query=max({metric})")
        return max((float(sample["value"][1]) for sample in answer["data"]["result"]), default=-1.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    kept = os.environ.get("DEPLOY_FOLDER")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("engine")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Engine.open(folder) as opened:
            opened.prepare(TARGETS)
            yield opened
    finally:
        if not kept:
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    secrets = tmp_path_factory.mktemp("secrets")
    engine.run([str(ROOT / "deploy/compose/secrets.sh"), str(secrets)])
    images = {target: engine.build(target) for target in TARGETS}
    engine.environment |= {
        "COMPOSE_PROJECT_NAME": f"routershift-test-{os.getpid()}",
        "COMPOSE_PROFILES": "cpu,environments",
        "RECIPE": "calculator.toml",  # its responses are episodes, so that every service has a part in it
        "SECRETS": str(secrets),
        "ENGINE": ENGINE,
        "GENERATION_IMAGE": images[SAMPLER],
        "GENERATION_PORT": "0",
        "GRAFANA_PORT": "0",
        "RUN_STEPS": "100000",  # it is under way until the end: a run that has finished pages nobody
    }
    try:
        try:
            engine.compose("up", "-d", "--no-build", *SERVICES)
        except AssertionError as error:
            error.add_note(engine.compose("ps") + engine.compose("logs", "--no-color", "--tail", "40"))
            raise
        yield Stack(engine)
    finally:
        engine.compose("down", "--volumes", "--timeout", "30")


@pytest.mark.parametrize("target", TARGETS)
def test_image_runs_without_rights(engine: Engine, target: str) -> None:
    """Not as root, without pip, on a read-only root; slim ones without torch, and small."""
    name = engine.build(target)
    image = json.loads(engine.docker("image", "inspect", name))[0]
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"][0] == "tini"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image["Size"] < SIZES.get(target, 3_000_000_000)
    alone = ["run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp", "--entrypoint=python3"]
    look = (
        "import importlib.util as u, json, os, services.cli.main; "
        "print(json.dumps([os.getuid(), *(u.find_spec(n) is not None for n in ('torch', 'pip', 'pytest'))]))"
    )
    assert json.loads(engine.docker(*alone, name, "-c", look)) == [
        10001,
        target not in ("curriculum", "environments", "reward"),
        False,
        False,
    ]


def test_a_recipe_with_episodes_trains(stack: Stack) -> None:
    until(f"{STEPS} steps", lambda: stack.value("routershift_learner_step") >= STEPS, 900)
    for service in SERVICES:
        state = stack.state(service)
        assert state["RestartCount"] == 0, service
        assert state["HostConfig"]["ReadonlyRootfs"], service
        assert state["HostConfig"]["CapDrop"] == ["ALL"], service
        assert state["HostConfig"]["Memory"] > 0, service
    until("all are healthy", lambda: all(stack.healthy(service) for service in SERVICES), 120)


def test_a_proxy_alone_is_published_and_generation_answers_through_it(stack: Stack) -> None:
    published = {}
    for service in SERVICES:
        ports = stack.state(service)["NetworkSettings"]["Ports"]
        published[service] = {key: [b["HostIp"] for b in bound] for key, bound in ports.items() if bound}
    assert published.pop("proxy") == {"50051/tcp": ["127.0.0.1"], "3000/tcp": ["127.0.0.1"]}
    assert not any(published.values())
    (bound,) = stack.state("proxy")["NetworkSettings"]["Ports"]["50051/tcp"]
    assert health.main(f"127.0.0.1:{bound['HostPort']}") == 0


@pytest.mark.parametrize("service", ["generation", "reward"])
def test_nobody_else_has_a_way_out(stack: Stack, service: str) -> None:
    """The proxy's address on the network that leads out stands for all beyond: this machine reaches it."""
    networks = stack.state("proxy")["NetworkSettings"]["Networks"]
    (address,) = [each["IPAddress"] for name, each in networks.items() if name.endswith("_published")]
    socket.create_connection((address, 50051), 5).close()
    asked = stack.engine.docker("exec", stack.container(service), "python3", "-c", _CONNECT, address)
    assert asked.strip() == "closed"


def test_prometheus_has_every_documented_metric(stack: Stack) -> None:
    """Those that have labels have series only once something happened; that they are scraped is in the metadata."""
    rows = [line for line in (ROOT / "docs/reference/metrics.md").read_text().splitlines() if line.startswith("| `")]
    documented = {line.split("`")[1]: line.split("|")[2].strip() for line in rows}
    assert len(documented) > 50

    def missing() -> set[str]:
        known = stack.fetch("http://prometheus:9090/api/v1/metadata")["data"]
        return {
            name
            for name, kind in documented.items()
            if kind not in {entry["type"] for entry in known.get(name) or known.get(name.removesuffix("_total")) or []}
        }

    try:
        until("every metric is scraped", lambda: not missing(), 120)
    except AssertionError as late:
        late.add_note(f"missing: {sorted(missing())}")
        raise
    until("the ledger is", lambda: stack.value("routershift_ledger_trajectories{state='trained'}") > 0, 60)
    assert stack.value("routershift_environments_turns_total") > 0


# Panels that this run leaves empty, each with the reason.
_EMPTY = {
    "Time to first token": "nobody streams",
    "Inter-token latency": "nobody streams",
    "Time of a group": "all groups are of episodes, whose turns are single calls",
    "Prefix cache of vLLM": "the torch engine has none",
}


def test_every_panel_of_every_dashboard_has_data(stack: Stack) -> None:
    def fetch(path: str) -> Any:
        return stack.fetch(f"http://prometheus:9090{path}")

    end = time.time()
    for path in sorted(FOLDER.glob("*.json")):
        answers = Board.read(path).answers(fetch, Window(end - 600, end))
        empty = {panel.split(": ")[0] for panel, _ in without_data(answers)}
        assert empty <= _EMPTY.keys(), path.stem


def test_an_alert_fires(stack: Stack) -> None:
    """A service that is stopped is noticed by Prometheus and shown by Alertmanager."""
    stack.engine.compose("stop", "reward")

    def fires() -> bool:
        alerts = stack.fetch("http://alertmanager:9093/api/v2/alerts")
        wanted = {"alertname": "RouterShiftServiceDown", "job": "reward", "run": "demo"}
        return any(wanted.items() <= alert["labels"].items() for alert in alerts)

    until("the alert fires", fires, 400)
