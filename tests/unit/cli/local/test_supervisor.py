"""The supervisor with real processes: what is started again, what is not, and what it says."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.cli.local.redis import local_redis
from services.cli.local.supervisor import SupervisedProcess, until_serving
from services.cli.settings import SupervisorSettings
from shared.errors import DeadlineError
from shared.process import logs
from shared.process.exits import EXIT_PORT_TAKEN
from shared.settings import RedisSettings
from shared.streams.connection import connect

Children = Callable[[], list[psutil.Process]]
QUICK = SupervisorSettings(backoff_seconds=0.01, max_backoff_seconds=0.01, max_deaths=3)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # what is waited for happens in another process
        await asyncio.sleep(0.02)


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """Those of our processes that the test has started."""
    before = set(psutil.Process().children())
    return lambda: [process for process in psutil.Process().children() if process not in before]


async def yes(_: float) -> bool:
    return True


async def nothing(_: float) -> None:
    return None


def supervised(
    script: str, settings: SupervisorSettings = QUICK, serves: bool = True, start_seconds: float = 60.0
) -> SupervisedProcess:
    return SupervisedProcess(
        "one",
        [sys.executable, "-c", script],
        yes if serves else nothing,
        lambda: "why",
        settings,
        start_seconds,
        "start_seconds",
    )


async def test_what_the_user_has_to_mend_is_not_tried_again() -> None:
    one = supervised("raise SystemExit(2)")
    one.start()
    ended = await one.ended()
    assert (ended.code, one.restarts) == (2, 0)
    await one.stop(1.0)


async def test_a_taken_port_is_for_whoever_starts_it_to_change() -> None:
    one = supervised(f"raise SystemExit({EXIT_PORT_TAKEN})", serves=False)
    one.start()
    ended = await one.ended()
    assert (ended.code, one.restarts) == (EXIT_PORT_TAKEN, 0)
    await one.stop(1.0)


async def test_a_port_that_others_know_is_waited_for(tmp_path: Path) -> None:
    """It served there before it died, and what has taken the port may go."""
    first, go = tmp_path / "first", tmp_path / "go"
    one = supervised(
        f"import pathlib, sys, time; first, go = pathlib.Path({str(first)!r}), pathlib.Path({str(go)!r})\n"
        f"if first.exists(): sys.exit({EXIT_PORT_TAKEN})\n"
        "first.touch()\n"
        "while not go.exists(): time.sleep(0.02)\n"
        "sys.exit(1)"
    )
    one.start()
    await one.serving.wait()
    await until(first.exists)
    go.touch()
    ended = await one.ended()
    assert (ended.code, one.restarts) == (EXIT_PORT_TAKEN, QUICK.max_deaths - 1)


async def test_it_is_given_up_with_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "one.jsonl"
    line = '{"message": "no luck", "traceback": "Traceback\\\\n  somewhere\\\\nValueError: 13"}'
    command = f"open({str(log)!r}, 'a').write('{line}\\n'); raise SystemExit(7)"
    one = SupervisedProcess(
        "one", [sys.executable, "-c", command], nothing, lambda: logs.last_line(log), QUICK, 60.0, "one.start_seconds"
    )
    one.start()
    ended = await one.ended()
    assert (ended.code, one.restarts) == (7, 2)
    assert len(log.read_text().splitlines()) == 3
    assert str(ended).startswith("one died 3 times in ")
    assert str(ended).endswith("given up: it ended with code 7; the last line of its log: no luck: ValueError: 13")


async def test_what_never_answers_is_killed() -> None:
    one = supervised("import time; time.sleep(1000)", SupervisorSettings(max_deaths=1), serves=False, start_seconds=0.3)
    one.start()
    with pytest.raises(DeadlineError, match=r"one did not serve within 0\.01 s.*raise start_seconds if"):
        await until_serving([one], 0.01)
    ended = await one.ended()
    assert ended.code == -signal.SIGKILL
    assert "did not answer for 0.3 s" in str(ended)


async def test_a_stop_during_the_wait_for_a_restart_starts_nothing(tmp_path: Path, children: Children) -> None:
    lived = tmp_path / "lived"
    settings = SupervisorSettings(backoff_seconds=1000, max_backoff_seconds=1000)
    one = supervised(f"open({str(lived)!r}, 'w'); raise SystemExit(1)", settings)
    one.start()
    await until(lambda: lived.exists() and not children())
    await one.stop(1.0)
    assert one.restarts == 0
    assert not children()


async def test_what_the_dead_left_behind_is_gone_before_the_restart(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    one = supervised(
        "import subprocess, pathlib; child = subprocess.Popen(['sleep', '1000'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid)); raise SystemExit(1)",
        SupervisorSettings(max_deaths=1),
    )
    one.start()
    await one.ended()
    left = int(pid.read_text())
    await until(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE)


async def test_a_supervisor_that_stood_still_itself_kills_nobody() -> None:
    one = supervised("import time; time.sleep(1000)", SupervisorSettings(liveness_seconds=0.3))
    one.start()
    await until_serving([one], 60.0)
    time.sleep(1.0)  # noqa: ASYNC251  # as a stopped process or a sleeping machine does
    await asyncio.sleep(0.3)
    assert one.restarts == 0
    assert one.serving.is_set()
    await one.stop(1.0)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_redis_comes_back_with_its_address_and_its_data(
    tmp_path: Path, fault: signal.Signals, children: Children
) -> None:
    settings = SupervisorSettings(liveness_seconds=1.5, backoff_seconds=0.01)
    async with local_redis(tmp_path / "redis", settings) as (url, server):
        redis = await connect(RedisSettings(url=url, timeout_seconds=60.0))
        await redis.set("key", "kept")
        process = (await redis.info("server"))["process_id"]
        await redis.aclose()
        os.kill(process, fault)
        await until(lambda: server.restarts > 0)
        await until_serving([server], 60.0)
        redis = await connect(RedisSettings(url=url))
        assert await redis.get("key") == b"kept"
        assert (await redis.info("server"))["process_id"] != process
        await redis.aclose()
    assert not children()
