"""Agents that the service starts: what they see, that they end with it, and what their own end does to episodes."""

import asyncio
import contextlib
import json
import os
import re
import sys
from pathlib import Path

import httpx2
import psutil
import pytest

from services.environments.gateway import metrics
from services.environments.gateway.agent import AgentEnvironment, AgentSettings
from services.environments.gateway.processes import agents
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.playing.limits import EpisodeLimits
from services.environments.registry import Configured
from tests.support.entries import until
from tests.support.gateway import Scripted, player, prompt, save_tokenizer, served

_AGENT = """
import json, os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
folder = pathlib.Path(sys.argv[1])
(folder / "new").write_text(json.dumps({"seen": dict(os.environ), "pids": [os.getpid(), child.pid]}))
(folder / "new").rename(folder / "seen.json")
time.sleep(600)
"""


async def test_an_agent_sees_what_its_table_names_and_ends_with_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REDIS_URL", "ROUTERSHIFT_TOKEN", "KEY_OF_A_TOOL"):
        monkeypatch.setenv(name, "secret")
    command = (sys.executable, "-c", _AGENT, str(tmp_path))
    settings = AgentSettings(command=command, variables=("KEY_OF_A_TOOL", "NOT_SET"))
    told = tmp_path / "seen.json"

    async def has_told() -> bool:
        return told.exists()

    async with agents({"helper": Configured("helper", AgentEnvironment, settings)}, Claims(), "http://127.0.0.1:9"):
        await until(has_told)
    found = json.loads(told.read_text())
    assert found["seen"]["ROUTERSHIFT_GATEWAY"] == "http://127.0.0.1:9/agents/1"
    assert found["seen"]["ROUTERSHIFT_ENVIRONMENT"] == "helper"
    assert found["seen"]["KEY_OF_A_TOOL"] == "secret"
    assert found["seen"]["PATH"] == os.environ["PATH"]
    assert {"REDIS_URL", "ROUTERSHIFT_TOKEN", "NOT_SET"}.isdisjoint(found["seen"])

    async def is_gone() -> bool:
        return not any(psutil.pid_exists(pid) and _runs(pid) for pid in found["pids"])

    await until(is_gone)


async def test_an_agent_that_ends_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.environments.gateway.processes._FIRST_PAUSE", 0.01)
    log = tmp_path / "starts"
    command = (sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write('x')", str(log))
    configured = Configured("helper", AgentEnvironment, AgentSettings(command=command))

    async def was_restarted() -> bool:
        return log.exists() and len(log.read_text()) >= 2 and len(claims.ended) >= 2

    claims = Claims()
    async with agents({"helper": configured}, claims, "http://127.0.0.1:9"):
        async with asyncio.timeout(60):
            await until(was_restarted)
    assert claims.ended[:2] == [("1", "code 0"), ("2", "code 0")]


_DIES = """
import json, os, pathlib, sys, time, urllib.request

def ask(path, **body):
    url = os.environ["ROUTERSHIFT_GATEWAY"] + path
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "null")

died = pathlib.Path(sys.argv[1])
while True:
    episode = ask("/episodes")
    if episode is None:
        continue
    ask(f"/episodes/{episode['id']}/v1/chat/completions", model="tiny", messages=episode["messages"])
    if not died.exists():
        died.touch()
        exec(sys.argv[2])
    ask(f"/episodes/{episode['id']}/reward", reward=1.0)
"""


@pytest.mark.parametrize(
    ("dies", "how"),
    [
        ("sys.exit(3)", "code 3"),
        ("raise ValueError", "code 1"),
        ("os.kill(os.getpid(), 9)", "signal 9 (Killed)"),
        ("os._exit(4) if os.fork() else ask('/episodes')", "code 4"),  # what it started is ended as well
    ],
)
async def test_an_episode_fails_at_once_with_its_agent_and_the_group_is_played_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str, how: str
) -> None:
    monkeypatch.setattr("services.environments.gateway.processes._FIRST_PAUSE", 0.01)
    save_tokenizer(tmp_path / "tiny")
    policy = Scripted(tmp_path / "tiny", ["ab"] * 6)
    limits = EpisodeLimits(turn_seconds=3600, episode_seconds=3600)
    command = (sys.executable, "-c", _DIES, str(tmp_path / "died"), dies)
    configured = Configured("helper", AgentEnvironment, AgentSettings(command=command))
    async with served(policy, tmp_path / "tiny", limits=limits) as (url, gateway), asyncio.timeout(60):
        playing = player(policy, gateway, tmp_path / "tiny", limits)
        before = metrics.EPISODES.labels("agent_ended")._value.get()
        async with agents({"helper": configured}, gateway.episodes, url):
            with pytest.raises(EpisodeFailedError, match=re.escape(f"an agent ended with {how} before")) as failed:
                await playing.play(prompt(n=2))
            group = await playing.play(prompt(n=2))
    assert failed.value.reason is Reason.AGENT_ENDED
    # What it forked may have claimed the other episode before it was ended.
    assert metrics.EPISODES.labels("agent_ended")._value.get() - before in ((1, 2) if "fork" in dies else (1,))
    assert [trajectory.score.reward for trajectory in group.trajectories] == [1.0, 1.0]


_PLAYS_ONE = """
import json, os, urllib.request

def ask(path, **body):
    url = os.environ["ROUTERSHIFT_GATEWAY"] + path
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())

episode = ask("/episodes")
ask(f"/episodes/{episode['id']}/v1/chat/completions", model="tiny", messages=episode["messages"])
ask(f"/episodes/{episode['id']}/reward", reward=1.0)
"""


async def test_an_agent_of_one_episode_is_started_again_without_longer_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses that double would be ten minutes in all."""
    monkeypatch.setattr("services.environments.gateway.processes._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("services.environments.gateway.processes._LONGEST_PAUSE", 3600.0)
    save_tokenizer(tmp_path / "tiny")
    policy = Scripted(tmp_path / "tiny", ["ab"] * 16)
    configured = Configured("helper", AgentEnvironment, AgentSettings(command=(sys.executable, "-c", _PLAYS_ONE)))
    async with served(policy, tmp_path / "tiny") as (url, gateway), asyncio.timeout(120):
        playing = player(policy, gateway, tmp_path / "tiny")
        async with agents({"helper": configured}, gateway.episodes, url):
            group = await playing.play(prompt(n=16))
    assert [trajectory.score.reward for trajectory in group.trajectories] == [1.0] * 16


async def test_only_agents_that_run_have_a_path(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tiny")
    policy = Scripted(tmp_path / "tiny", [])
    async with served(policy, tmp_path / "tiny") as (url, gateway), httpx2.AsyncClient() as http:
        agent = gateway.episodes.agent_started()
        assert (await http.post(f"{url}/agents/{agent}/episodes", json={"wait_seconds": 0})).status_code == 204
        waiting = asyncio.create_task(http.post(f"{url}/agents/{agent}/episodes", timeout=60))
        forged = await http.post(f"{url}/agents/{agent[:-1]}/episodes", json={"wait_seconds": 0})
        assert (forged.status_code, forged.json()["error"]["code"]) == (404, "no_agent")
        assert (await http.get(f"{url}/agents/{agent}/v1/models")).status_code == 200
        gateway.episodes.agent_ended(agent, "code 0")
        with contextlib.suppress(EpisodeFailedError):
            async with asyncio.timeout(5):
                await player(policy, gateway, tmp_path / "tiny", claim_seconds=0.2).play(prompt(n=1))
        assert (await waiting).status_code == 404, "and claims nothing"


class Claims:
    """Keeps which agents have ended, and how."""

    def __init__(self) -> None:
        self._started = 0
        self.ended: list[tuple[str, str]] = []

    def agent_started(self) -> str:
        self._started += 1
        return str(self._started)

    def agent_ended(self, agent: str, how: str) -> bool:
        self.ended.append((agent, how))
        return False


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
