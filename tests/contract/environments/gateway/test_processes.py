"""Agents that the service starts: what they see, and that they end with it."""

import asyncio
import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from services.environments.gateway.agent import AgentEnvironment, AgentSettings
from services.environments.gateway.processes import agents
from services.environments.registry import Configured
from tests.support.entries import until

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

    async with agents({"helper": Configured("helper", AgentEnvironment, settings)}, "http://127.0.0.1:9"):
        await until(has_told)
    found = json.loads(told.read_text())
    assert found["seen"]["ROUTERSHIFT_GATEWAY"] == "http://127.0.0.1:9"
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
        return log.exists() and len(log.read_text()) >= 2

    async with agents({"helper": configured}, "http://127.0.0.1:9"):
        async with asyncio.timeout(60):
            await until(was_restarted)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
