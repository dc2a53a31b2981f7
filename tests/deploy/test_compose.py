"""What can be said of docker-compose.yml without an engine."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli.recipe import Recipe
from services.cli.settings import SupervisorSettings
from shared.recipes import ENV_PREFIX, load
from tests.support.containers import ROOT, compose_command
from tests.support.dockerfile import stages

COMPOSE = ROOT / "docker-compose.yml"
PROXY = ROOT / "deploy/compose/haproxy.cfg"
K8S_REDIS = ROOT / "deploy/k8s/base/redis.yaml"
SERVING = {"reward", "environments", "learner", "generation", "learner-gpu", "generation-gpu", "curriculum"}
OURS = SERVING | {"functions"}


def services() -> dict[str, dict[str, Any]]:
    """Anchors and merges resolved, variables not."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


@pytest.mark.parametrize("profile", ["cpu", "gpu", "cpu,environments"])
def test_compose_takes_the_file(profile: str, tmp_path: Path) -> None:
    command = compose_command()
    if command is None:
        pytest.skip("needs compose: apt-get install --no-install-recommends docker-compose")
    subprocess.run([ROOT / "deploy/compose/secrets.sh", tmp_path], check=True)
    environment = {**os.environ, "COMPOSE_PROFILES": profile, "SECRETS": str(tmp_path)}
    done = subprocess.run(
        [*command, "config", "-q"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_container_is_confined_and_limited() -> None:
    for name, service in services().items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["logging"]["options"]["max-size"], name
        assert not service.get("privileged"), name
        assert name in OURS or service["user"].split(":")[0] != "0", name
        assert name in OURS - {"generation", "generation-gpu"} or "healthcheck" in service, name


def test_only_a_proxy_is_published_and_has_a_way_out() -> None:
    """Who is on a network that is not internal may call anybody: nothing of ours, and no Grafana, is on one."""
    networks = yaml.safe_load(COMPOSE.read_text())["networks"]
    assert networks == {"internal": {"internal": True}, "published": {}}
    assert [name for name, service in services().items() if set(service["networks"]) != {"internal"}] == ["proxy"]
    assert [name for name, service in services().items() if "ports" in service] == ["proxy"]
    assert all(port.startswith("127.0.0.1:") for port in services()["proxy"]["ports"])


def test_the_proxy_hands_on_what_it_publishes() -> None:
    published = {port.rsplit(":", 1)[1] for port in services()["proxy"]["ports"]}
    assert set(re.findall(r"(?m)^    bind :(\d+)$", PROXY.read_text())) == published
    servers = re.findall(r"(?m)^    server \w+ (\w+):(\d+)$", PROXY.read_text())
    assert {port for _, port in servers} == published
    for name, _ in servers:
        on = [services()[each]["networks"] for each in (name, f"{name}-gpu") if each in services()]
        assert all("internal" in each for each in on)
        assert all(each["internal"]["aliases"] == [name] for each in on if isinstance(each, dict))


def test_haproxy_takes_the_file() -> None:
    if (haproxy := shutil.which("haproxy")) is None:
        pytest.skip("needs haproxy: apt-get install --no-install-recommends haproxy")
    done = subprocess.run([haproxy, "-c", "-f", PROXY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_images_are_targets_of_the_dockerfile() -> None:
    for name in OURS:
        service = services()[name]
        assert service["build"]["target"] in stages()
        assert service["build"]["target"] in service["image"]
        assert ":-localhost/routershift" in service["image"], "a public registry may have it, from anyone"


def test_redis_is_that_of_kubernetes() -> None:
    """Where its release is held to have its fixes."""
    (pods,) = [each for each in yaml.safe_load_all(K8S_REDIS.read_text()) if each["kind"] == "StatefulSet"]
    assert services()["redis"]["image"] == pods["spec"]["template"]["spec"]["containers"][0]["image"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_settings_exist_and_each_service_has_its_own_password(name: str) -> None:
    """The environment of each service is one that the settings take, beside the recipe of the demo."""
    service = services()[name]
    role = name.removesuffix("-gpu")
    assert service["secrets"] == [f"redis_{role}"]
    environment = {key: "80" if key.endswith("STEPS") else str(value) for key, value in service["environment"].items()}
    environment["ROUTERSHIFT_RUN__ID"] = "demo"
    environment["ROUTERSHIFT_TRACES__ENDPOINT"] = ""  # as compose has it where TRACES_ENDPOINT is not set
    if "ROUTERSHIFT_GENERATION__ENGINE" in environment:
        environment["ROUTERSHIFT_GENERATION__ENGINE"] = "torch"
    recipe = load(Recipe, ROOT / "deploy/recipes/countdown.toml", environment)
    assert recipe.redis.username == role
    assert str(recipe.redis.password_file) == f"/run/secrets/redis_{role}"
    assert sum(key.startswith(ENV_PREFIX) for key in environment) >= 5


def test_whoever_calls_functions_begins_when_they_are_there() -> None:
    """Users of services may not load them. Generation begins after the learner."""
    for name in SERVING - {"generation", "generation-gpu"}:
        assert services()[name]["depends_on"]["functions"] == {"condition": "service_completed_successfully"}, name
    assert services()["functions"]["command"] == ["functions"]


def test_a_drain_ends_before_it_is_killed() -> None:
    recipe = load(Recipe, ROOT / "deploy/recipes/countdown.toml", {})
    for name in SERVING:
        grace = float(services()[name]["stop_grace_period"].removesuffix("s"))
        assert grace > recipe.server(name.removesuffix("-gpu")).drain_seconds


def test_bad_input_is_not_retried_for_ever() -> None:
    """What is not ours comes back with the machine; ours is given up at last, as by `routershift up`."""
    most = SupervisorSettings().max_deaths
    for name, service in services().items():
        assert service["restart"] == (f"on-failure:{most}" if name in OURS else "unless-stopped"), name


def test_the_weights_are_read_only_where_they_are_served() -> None:
    for name in ("generation", "generation-gpu"):
        assert "runs:/runs:ro" in services()[name]["volumes"]


def test_secrets_are_made_once(tmp_path: Path) -> None:
    declared = yaml.safe_load(COMPOSE.read_text())["secrets"]
    make = [ROOT / "deploy/compose/secrets.sh", tmp_path]
    subprocess.run(make, check=True)
    first = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert set(first) == set(declared)
    assert all(len(secret) >= 32 for secret in first.values())
    subprocess.run(make, check=True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == first
