"""Every command that prints ends quietly where nobody reads, as after `| head`; `test_main` has whole processes."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from routershift.v1 import learner_pb2 as lrn
from routershift.v1 import learner_pb2_grpc as lrn_grpc
from services.cli.commands.run import OFFLINE
from services.cli.endpoints import Addresses, Endpoints
from services.cli.main import main
from services.cli.registry import known
from shared.process.exits import EXIT_CLOSED_PIPE
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.run import Run
from tests.support.command import RECIPE
from tests.support.kept import exportable, forkable
from tests.support.run_records import evaluation, step, write_run, write_samples
from tests.support.runs import a_run_of_every_kind

SILENT = {"serve", "up"}  # they say what they do on stderr


class Learner(lrn_grpc.LearnerServiceServicer):
    """One that pauses and goes on."""

    def GetStatus(self, request: object, context: object) -> lrn.LearnerServiceGetStatusResponse:  # noqa: N802
        return lrn.LearnerServiceGetStatusResponse(run_id="led", phase=lrn.LEARNER_PHASE_TRAINING)

    def Checkpoint(self, request: object, context: object) -> lrn.CheckpointResponse:  # noqa: N802
        return lrn.CheckpointResponse()

    def Pause(self, request: object, context: object) -> lrn.PauseResponse:  # noqa: N802
        return lrn.PauseResponse(step=3)

    def Resume(self, request: object, context: object) -> lrn.ResumeResponse:  # noqa: N802
        return lrn.ResumeResponse(step=3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in OFFLINE.items():  # a dry run sets them
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def streams(redis_url: str, stream_settings: StreamSettings, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run in Redis, by its id."""
    name = "closed-pipe"

    async def fill() -> None:
        redis = await connect(RedisSettings(url=redis_url))
        run = Run(redis, name, stream_settings)
        await run.open()
        if not (await run.ledger()).prompted:
            await a_run_of_every_kind(run)
        await redis.aclose()

    asyncio.run(fill())
    monkeypatch.setenv("REDIS_URL", redis_url)
    return name


@pytest.fixture
def led(here: Path) -> Iterator[str]:
    """A run whose learner answers."""
    server = grpc.server(ThreadPoolExecutor(2))
    lrn_grpc.add_LearnerServiceServicer_to_server(Learner(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    write_run(here / "runs/led")
    services = {"learner": Addresses(grpc=f"127.0.0.1:{port}", metrics="")}
    Endpoints(run="led", redis="none", services=services).write(here / "runs/led")
    yield "led"
    server.stop(0).wait()


def _trained(folder: Path) -> str:
    write_run(folder / "runs/trained", map(step, range(1, 9)), [evaluation(0, 0.2), evaluation(8, 0.4)])
    write_samples(folder / "runs/trained", [8], 4)
    return "trained"


def _rows(folder: Path) -> str:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}", "answer": "1"}) + "\n" for i in range(9))
    )
    return "rows.jsonl"


Arguments = Callable[[Path], list[str]]
IN_A_FOLDER: dict[str, Arguments] = {
    "bench": lambda _: [],
    "completion": lambda _: ["bash"],
    "data": lambda here: ["check", _rows(here), "--model", str(RECIPE.parent / "countdown/model")],
    "doctor": lambda _: ["--set", "generation.engine=torch"],
    "export": lambda here: [str(exportable(here)), "exported"],
    "fork": lambda here: [str(forkable(Path("model"))), "second", "--step", "4"],
    "functions": lambda _: ["--print"],
    "init": lambda here: [str(RECIPE.parent / "countdown/model"), _rows(here)],
    "plan": lambda _: ["--model", "olmoe-1b-7b-0924", "--gpus", "8", "--gpu", "h100", "--steps", "1"],
    "report": lambda here: [_trained(here)],
    "rollouts": lambda here: [_trained(here)],
    "run": lambda _: [str(RECIPE), "--dry-run", "--set", "generation.engine=torch"],
    "runs": lambda _: [str(forkable(Path("model")).parent)],
    "score": lambda here: ["--verifier", "exact", "--input", _items(here)],
    "settings": lambda _: ["--json"],
    "view": lambda here: [_trained(here), "--port", "0"],
}
OF_STREAMS = {"audit": [], "dead": ["list"], "status": ["--json"]}
OF_A_LEARNER = {"pause", "resume"}


def _items(folder: Path) -> str:
    (folder / "items.jsonl").write_text('{"response": "x", "reference": "x"}\n' * 20)
    return "items.jsonl"


def closed(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """The exit code and stderr of a command whose reader is gone before the first byte."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out, (folder / "stderr").open("w+") as err, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        patched.setattr(sys, "stderr", err)
        code = main(arguments)
    return code, (folder / "stderr").read_text()


def test_every_command_is_here_or_prints_nothing() -> None:
    own = {entry.name for entry in known().values() if entry.where == "RouterShift"}
    assert {*IN_A_FOLDER, *OF_STREAMS, *OF_A_LEARNER, "profile"} | SILENT == own


@pytest.mark.parametrize("command", IN_A_FOLDER)
def test_nobody_reads_what_a_command_prints(here: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    arguments = IN_A_FOLDER[command](here)
    assert closed(here, monkeypatch, command, *arguments) == (EXIT_CLOSED_PIPE, "")


@pytest.mark.parametrize("command", OF_STREAMS)
def test_nobody_reads_what_is_told_of_a_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, streams: str, command: str
) -> None:
    assert closed(here, monkeypatch, command, streams, *OF_STREAMS[command]) == (EXIT_CLOSED_PIPE, "")


@pytest.mark.parametrize("command", sorted(OF_A_LEARNER))
def test_nobody_reads_what_a_learner_does(here: Path, monkeypatch: pytest.MonkeyPatch, led: str, command: str) -> None:
    assert closed(here, monkeypatch, command, led) == (EXIT_CLOSED_PIPE, "")


def test_nobody_reads_where_a_profile_lies(here: Path, monkeypatch: pytest.MonkeyPatch, led: str) -> None:
    code, said = closed(here, monkeypatch, "profile", led, "learner", "--seconds", "1", "--idle")
    assert code == EXIT_CLOSED_PIPE, said
    assert said.splitlines() == [f"learner, process {os.getpid()}, for 1 s"]
