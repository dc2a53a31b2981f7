"""Environments of a file: whatever they do, they do it to a process of their own."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.environments.kinds.file import environment as file_environment
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.registry import Configured, make_environments
from shared.errors import InvalidInputError, NotFoundError
from tests.support.episodes import Script, player, prompt
from tests.support.models import build_tokenizer

SOURCE = """
import os, sys, time
from pathlib import Path

from pydantic import Field

from services.environments.base import Environment, EnvironmentSettings, Step, TextObservation
from shared.errors import InvalidInputError

print("this is no answer")


class Settings(EnvironmentSettings):
    reward: float = Field(1.0, gt=0)


class Mine(Environment):
    name = "mine"
    version = "7"
    description = "answers once"
    stop = ("!",)
    Settings = Settings

    async def reset(self, task, seed):
        self.turns = 0
        self.task = task
        if task.get("bad"):
            raise InvalidInputError("task.bad is true; expected none")
        return None

    async def step(self, action):
        self.turns += 1
        does = self.task.get("does")
        once = Path(self.task["once"]) if "once" in self.task else None
        if does and not (once and once.exists()):
            if once:
                once.write_text("")
            if does == "blocks":
                time.sleep(1000)
            if does == "exits":
                os._exit(3)
            if does == "raises":
                raise KeyError("gone wrong")
        if self.turns == 1:
            return Step(TextObservation("42,"))
        return Step(reward=self.settings.reward, is_done=True)
"""


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    file_environment.close_all()
    assert hosts() == []


def hosts() -> list[psutil.Process]:
    """The processes of files that descend from this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "kinds.file.host" in (line := " ".join(process.cmdline())) or "routershift environment" in line:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


async def configured(tmp_path: Path, source: str = SOURCE, **changes: Any) -> dict[str, Configured]:
    file = tmp_path / "mine.py"
    file.write_text(source)
    return await asyncio.to_thread(make_environments, {"scripted": {"file": str(file), **changes}})


async def play(environments: dict[str, Configured], n: int = 3, **task: Any) -> Any:
    asked = player(Script(build_tokenizer(), ["6*7", "42"]), environments, build_tokenizer())
    return await asked.play(prompt(n=n, task=task))


async def test_a_class_in_a_file_is_an_environment(tmp_path: Path) -> None:
    environments = await configured(tmp_path, settings={"reward": 0.5})
    made = environments["scripted"].make()
    assert (made.version, made.stop, made.rewards) == ("7", ("!",), True)
    groups = await asyncio.gather(*(play(environments) for _ in range(3)))
    assert [t.score.reward for group in groups for t in group.trajectories] == [0.5] * 9
    assert groups[0].trajectories[0].score.verifier_version == "7"
    assert len(hosts()) == 1, "one process for all episodes"
    with pytest.raises(InvalidInputError, match=r"task\.bad is true"):
        await play(environments, bad=True)


@pytest.mark.parametrize(
    ("does", "seconds", "reason"),
    [
        ("raises", 60.0, Reason.ENVIRONMENT_FAILED),
        ("exits", 60.0, Reason.ENVIRONMENT_FAILED),
        ("blocks", 3.0, Reason.ENVIRONMENT_TIMED_OUT),
    ],
)
async def test_what_it_does_to_its_process_is_a_failure_and_no_more(
    tmp_path: Path, does: str, seconds: float, reason: Reason
) -> None:
    environments = await configured(tmp_path, answer_seconds=seconds)
    (before,) = hosts()
    with pytest.raises(EpisodeFailedError) as failed:
        await play(environments, does=does, once=str(tmp_path / "once"))
    assert failed.value.reason is reason
    assert before.is_running() == (does == "raises"), "one that is blocked is killed"
    group = await play(environments, does=does, once=str(tmp_path / "once"))
    assert [t.score.reward for t in group.trajectories] == [1.0] * 3
    assert len(hosts()) == 1


async def test_the_file_is_read_once(tmp_path: Path) -> None:
    environments = await configured(tmp_path)
    (tmp_path / "mine.py").write_text("raise ValueError")
    (process,) = hosts()
    process.kill()
    process.wait()
    assert len((await play(environments)).trajectories) == 3


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("x = (", {}, r"mine\.py:1: SyntaxError"),
        ("import os\nos._exit(5)", {}, r"the process that loads it ends with 5"),
        ("import time\ntime.sleep(1000)", {"start_seconds": 2.0}, r"not loaded within start_seconds = 2"),
        (SOURCE, {"settings": {"reward": -1}}, r"setting 'settings\.reward' is '-1'"),
        (SOURCE, {"clas_name": "Mine"}, r"did you mean 'environments\.named\.scripted\.class_name'"),
    ],
)
async def test_what_is_wrong_with_a_file_is_said_at_the_start(
    tmp_path: Path, source: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        await configured(tmp_path, source, **changes)


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"environments\.named\.mine: file is .*no\.py: No such file"):
        make_environments({"mine": {"file": str(tmp_path / "no.py")}})


def test_no_process_outlives_the_service(tmp_path: Path) -> None:
    """However that one ends."""
    (tmp_path / "mine.py").write_text(SOURCE)
    script = (
        "import os, signal\nfrom services.environments.registry import make_environments\n"
        f"made = make_environments({{'mine': {{'file': {str(tmp_path / 'mine.py')!r}}}}})['mine'].make()\n"
        "print(made._host.process._process.pid, flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        host = psutil.Process(int(service.stdout.readline()))
        os.kill(service.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while host.is_running() and host.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not host.is_running() or host.status() == psutil.STATUS_ZOMBIE
