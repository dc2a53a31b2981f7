"""Dead letters and large payloads, and the commands that look into a run."""

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.cli.endpoints import Endpoints
from services.cli.local.redis import find_server, release_of
from services.cli.main import main
from shared.errors import NotFoundError, OverloadedError, PreconditionError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.audit import audit
from shared.streams.connection import connect
from shared.streams.consumer import End
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.redis_server import Server
from tests.support.runs import GROUP, a_run_of_every_kind, end, move, prompt, scored


async def test_a_large_payload_goes_in_chunks_and_leaves_nothing_behind(
    redis: Redis, stream_settings: StreamSettings
) -> None:
    run = Run(redis, "test-large", stream_settings.model_copy(update={"max_entry_bytes": 1024}))
    await run.open()
    await run.admit(0, prompt(0), 10)
    await move(run, Stream.PROMPTS, Stream.ROLLOUTS, 1, size=10_000)
    (blob,) = await redis.keys("{test-large}:blob:*")
    assert await redis.hlen(blob) == 10
    assert await redis.ttl(blob) == -1
    size = len(scored(0, 10_000).SerializeToString())
    assert (await run.backlog())[Stream.ROLLOUTS].bytes == size
    reader = run.consumer(Stream.ROLLOUTS)
    (entry,) = await reader.read(1)
    assert entry.payload == scored(0, 10_000).SerializeToString()
    await reader.bury(entry, "bad", "for the test")
    (letter_id,) = await run.dead.ids()
    assert (await run.dead.get(letter_id)).payload == entry.payload
    await run.dead.replay(letter_id)
    (entry,) = await reader.read(1)
    assert len(await redis.keys("{test-large}:blob:*")) == 1
    await reader.end(entry, End.dropped("test"))
    assert await redis.keys("{test-large}:blob:*") == []
    assert (await audit(redis, run, None)).problems == {}


async def test_a_large_payload_that_was_not_handed_over_goes_by_itself(
    redis: Redis, stream_settings: StreamSettings
) -> None:
    run = Run(redis, "test-abandoned", stream_settings.model_copy(update={"max_entry_bytes": 1024}))
    await run.open()
    await run.admit(0, prompt(0), 10)
    reader = run.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    writing = asyncio.create_task(reader.hand_over(entry, Stream.ROLLOUTS, scored(0, 100_000)))
    while not (keys := await redis.keys("{test-abandoned}:blob:*")):  # noqa: ASYNC110  # Redis has no event
        await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert 0 < await redis.ttl(keys[0]) <= 600


async def test_an_entry_whose_payload_is_lost_is_a_dead_letter(redis: Redis, stream_settings: StreamSettings) -> None:
    run = Run(redis, "test-lost", stream_settings.model_copy(update={"max_entry_bytes": 1024}))
    await run.open()
    await run.admit(0, prompt(0), 10)
    await move(run, Stream.PROMPTS, Stream.ROLLOUTS, 1, size=10_000)
    await redis.delete(*await redis.keys("{test-lost}:blob:*"))
    found = await audit(redis, run, None)
    assert set(found.problems) == {"payload_lost"}
    assert await run.consumer(Stream.ROLLOUTS).read(1) == []
    assert (await run.ledger()).dead == {"payload_lost": GROUP}
    assert (await run.backlog())[Stream.ROLLOUTS].bytes == 0
    with pytest.raises(ValueError, match="has no payload"):
        await run.dead.replay((await run.dead.ids())[0])


async def test_a_letter_is_replayed_once_and_only_where_there_is_room(redis: Redis, run: Run) -> None:
    await a_run_of_every_kind(run)
    (letter_id,) = await run.dead.ids()
    small = Run(redis, run.keys.run, StreamSettings(max_bytes=1 << 16))
    await redis.hincrby(run.keys.bytes, Stream.SCORED, 1 << 16)
    with pytest.raises(OverloadedError, match="scored is full"):
        await small.dead.replay(letter_id)
    await redis.hincrby(run.keys.bytes, Stream.SCORED, -(1 << 16))
    await run.dead.replay(letter_id)
    with pytest.raises(NotFoundError, match=letter_id):
        await run.dead.replay(letter_id)
    assert (await run.ledger()).dead == {}
    assert await run.dead_letters() == 0
    entries = await end(run, Stream.SCORED, 10, End.trained(8))
    assert [entry.group for entry in entries] == ["00000003/0", "00000002/0"]
    contained = {"00000000/0": 7, "00000002/0": 8, "00000003/0": 8}
    assert (await audit(redis, run, lambda: contained)).problems == {}


async def test_a_letter_of_a_group_that_lives_is_not_replayed(redis: Redis, run: Run) -> None:
    await a_run_of_every_kind(run)
    (letter_id,) = await run.dead.ids()
    await redis.hset(run.keys.in_flight, "00000002/0", f"{GROUP} scored")
    with pytest.raises(PreconditionError, match="in flight"):
        await run.dead.replay(letter_id)


@pytest.fixture
def ended_run(tmp_path: Path) -> Path:
    """The folder of a run that has ended with its Redis."""
    folder = tmp_path / "over"
    (folder / "redis").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as short, Server(folder / "redis", Path(short) / "r.sock") as server:

        async def live() -> None:
            redis = await connect(RedisSettings(url=server.url))
            run = Run(redis, "over", StreamSettings(block_seconds=0.05))
            await run.open()
            await a_run_of_every_kind(run)
            await redis.aclose()

        asyncio.run(live())
    Endpoints(run="over", redis=server.url, services={}).write(folder)
    return folder


def test_the_commands_look_into_a_run_that_has_ended(
    ended_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert main(["audit", str(ended_run)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["live"], found["checkpoints"]) == (True, False, None)
    release = release_of(find_server())  # that of the copy of what the run left
    assert (found["server"], found["server_warning"]) == (str(release), release.warning)
    assert found["ledger"]["in_flight"] == {"prompted": GROUP, "generated": GROUP, "scored": GROUP}
    assert main(["dead", str(ended_run), "list"]) == 0
    letter = json.loads(capsys.readouterr().out)
    assert (letter["group"], letter["reason"]) == ("00000002/0", "bad_trajectory")
    assert main(["dead", str(ended_run), "purge", "all"]) != 0
    assert "has ended" in capsys.readouterr().err
    (ended_run / "checkpoints").mkdir()
    assert main(["audit", str(ended_run)]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert problems == {"trained_not_in_checkpoints": {"00000000/0": "step 7"}}


def test_the_commands_change_a_run_that_lives(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def make(redis: Redis) -> list[str]:
        run = Run(redis, "test-commands", StreamSettings(block_seconds=0.05))
        await run.open()
        await a_run_of_every_kind(run)
        return await run.dead.ids()

    async def ask(question: Callable[[Redis], Awaitable[Any]]) -> Any:
        redis = await connect(RedisSettings(url=redis_url))
        try:
            return await question(redis)
        finally:
            await redis.aclose()

    (letter_id,) = asyncio.run(ask(make))
    monkeypatch.setenv("REDIS_URL", redis_url)
    assert main(["dead", "test-commands", "show", letter_id]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["payload"]["prompt"]["prompt_id"] == "00000002"
    assert main(["dead", "test-commands", "replay", "all"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": letter_id, "done": "replay"}
    assert main(["audit", "test-commands"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"]["in_flight"]["scored"] == 2 * GROUP
    assert main(["dead", "test-commands", "purge", letter_id]) == 2
    assert letter_id in capsys.readouterr().err
    assert main(["dead", "test-commands", "show"]) == 2
