"""Worker processes: each item has its own outcome, whatever happens to those beside it."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from services.reward.outcomes import Outcome, Scored
from services.reward.verifiers.base import Verifier
from shared.errors import PreconditionError, UnavailableError
from tests.support.pool import judge, pool
from tests.support.verifiers import BatchedVerifier, ScriptedSettings, ScriptedVerifier

SCORED, FAILED, TIMED_OUT, REFUSED = Outcome


def outcomes(scored: list[Scored]) -> list[Outcome]:
    return [s.outcome for s in scored]


def rewards(scored: list[Scored]) -> list[float | None]:
    return [s.verdict.reward if s.verdict else None for s in scored]


async def test_every_item_has_its_own_outcome_in_order() -> None:
    async with pool() as made:
        scored = await judge(made, "ok 0.5", "raise", "refuse", "ok nan", "print", "ok 0.25")
    assert outcomes(scored) == [SCORED, FAILED, REFUSED, FAILED, SCORED, SCORED]
    assert rewards(scored) == [0.5, None, None, None, 1.0, 0.25]
    raised, _, where = scored[1].error.partition(" (")
    assert [raised, *(s.error for s in scored[2:4])] == [
        "RuntimeError: it broke",
        "no such reference",
        "the reward is nan",
    ]
    assert "verifiers.py:" in where
    assert {(s.verifier, s.version) for s in scored} == {("scripted", "7")}


async def test_order_is_kept_over_workers_and_chunks() -> None:
    async with pool() as made:
        batches = [[f"ok {b + i / 1000}" for i in range(300)] for b in range(4)]
        answers = await asyncio.gather(*(judge(made, *batch) for batch in batches))
    assert [rewards(a) for a in answers] == [[float(r[3:]) for r in batch] for batch in batches]
    pids = {s.verdict.parts["pid"] for a in answers for s in a if s.verdict}
    assert len(pids) == 2


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("kill 11", "its process ended with signal 11 (SIGSEGV)"),
        ("kill 9", "its process ended with signal 9 (SIGKILL)"),
        ("exit 0", "its process ended with exit code 0"),
        ("take 2000", "MemoryError: "),
    ],
)
async def test_what_ends_its_process_fails_alone(response: str, error: str) -> None:
    async with pool() as made:
        scored = await judge(made, *["ok"] * 40, response, *["ok"] * 40)
        assert outcomes(scored) == [SCORED] * 40 + [FAILED] + [SCORED] * 40
        assert scored[40].error.partition(" (/")[0] == error
        assert outcomes(await judge(made, "ok")) == [SCORED]


@pytest.mark.parametrize("kind", [ScriptedVerifier, BatchedVerifier])
@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("flood", "PrintedTooMuchError: it printed more than 64 KiB for one item; print less, or raise reward.printed"),
        ("flood-quietly", "it printed more than 64 KiB for one item; print less, or raise reward.printed_kb"),
        ("flood-below", "it printed more than 64 KiB for one item; print less, or raise reward.printed_kb"),
        ("give none", "the verdict is None; expected a Verdict"),
        ("give text", "the reward is '1'"),
        ("give huge", "the reward is 10000"),
        ("give nan-part", "parts['style'] is nan; expected finite numbers by name"),
        ("give text-part", "parts['style'] is 'good'; expected finite numbers by name"),
        ("give nameless-part", "parts[7] is 1.0; expected finite numbers by name"),
        ("give surrogate-part", "parts['\\ud800'] is 1.0; expected finite numbers by name"),
    ],
)
async def test_what_cannot_be_used_fails_alone_and_keeps_its_process(
    kind: type[Verifier], response: str, error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with pool(kind, processes=1) as made:
        before = await judge(made, "ok")
        scored = await judge(made, *["ok"] * 3, response, *["ok"] * 3)
    assert outcomes(scored) == [SCORED] * 3 + [FAILED] + [SCORED] * 3
    assert scored[3].error.startswith(error)
    assert {s.verdict.parts["pid"] for s in [*before, *scored] if s.verdict} == {before[0].verdict.parts["pid"]}  # type: ignore[union-attr]
    assert len(capfd.readouterr().err) < 128 << 10


async def test_what_is_printed_goes_to_the_log_with_the_verifiers_name(capfd: pytest.CaptureFixture[str]) -> None:
    async with pool(processes=1) as made:
        await judge(made, "print")
    assert capfd.readouterr().err == "verifier scripted prints: [true, [[0, 0, 1.0, {}]]]\n"


async def test_a_process_that_ends_has_its_last_words_in_the_error() -> None:
    async with pool(processes=1) as made:
        (scored,) = await judge(made, "say-and-exit out of luck")
    assert scored.error == "its process ended with exit code 1, and had printed: out of luck"


async def test_a_process_that_is_not_ready_in_time_is_ended() -> None:
    children = set(psutil.Process().children())
    with pytest.raises(PreconditionError, match=r"was not ready within 0\.3 s; raise start_seconds in its table"):
        async with pool(starts="slowly", start_seconds=0.3):
            pass
    assert set(psutil.Process().children()) <= children


async def test_a_verifiers_table_names_the_variables_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    async with pool(processes=1) as made:
        assert rewards(await judge(made, "sees JUDGE_KEY")) == [0.0]
    async with pool(processes=1, environment=("JUDGE_KEY",)) as made:
        assert rewards(await judge(made, "sees JUDGE_KEY")) == [1.0]


async def test_every_item_may_end_its_process() -> None:
    async with pool() as made:
        assert outcomes(await judge(made, *["exit 1"] * 5)) == [FAILED] * 5


async def test_an_item_past_its_deadline_times_out_alone() -> None:
    async with pool(timeout=0.5) as made:
        scored = await judge(made, *["ok"] * 40, "sleep 60", *["ok"] * 40)
    assert outcomes(scored) == [SCORED] * 40 + [TIMED_OUT] + [SCORED] * 40
    assert 0.5 <= scored[40].seconds < 5
    assert scored[40].error == "none within 0.5 s"


async def test_a_slow_item_holds_back_only_itself() -> None:
    async with pool() as made:
        await judge(made, *["ok"] * 200)  # now it knows how cheap they are, and puts many into a message
        slow = asyncio.create_task(judge(made, "sleep 5"))
        async with asyncio.timeout(4):
            mixed = asyncio.create_task(judge(made, "ok", "sleep 0.4", *["ok"] * 200))
            assert outcomes(await judge(made, *["ok"] * 50)) == [SCORED] * 50
            assert outcomes(await mixed) == [SCORED] * 202
        assert not slow.done()
        slow.cancel()


async def test_a_caller_that_leaves_takes_its_waiting_items_along() -> None:
    async with pool(processes=1) as made:
        left = asyncio.create_task(judge(made, *["sleep 0.2"] * 100))
        await asyncio.sleep(0.1)
        left.cancel()
        async with asyncio.timeout(10):
            assert outcomes(await judge(made, "ok")) == [SCORED]


async def test_batches_are_full_where_there_is_enough_and_come_from_one_process() -> None:
    async with pool(BatchedVerifier) as made:
        scored = await judge(made, *["ok"] * 10)
    assert rewards(scored) == [4, 4, 4, 4, 4, 4, 4, 4, 2, 2]
    assert len({s.verdict.parts["pid"] for s in scored if s.verdict}) == 1


@pytest.mark.parametrize(
    ("response", "outcome"),
    [("raise", FAILED), ("refuse", REFUSED), ("kill 11", FAILED), ("sleep 60", TIMED_OUT)],
)
async def test_what_spoils_its_batch_is_found_and_has_its_own_outcome(response: str, outcome: Outcome) -> None:
    async with pool(BatchedVerifier, timeout=0.5) as made:
        assert outcomes(await judge(made, "ok", response, "ok")) == [SCORED, outcome, SCORED]


async def test_one_item_that_dies_once_is_not_tried_again() -> None:
    """A retry is the caller's to decide."""
    async with pool(processes=1) as made:
        assert outcomes(await judge(made, "kill 9", "ok")) == [FAILED, SCORED]


@pytest.mark.parametrize(
    ("starts", "text"),
    [("refused", "not on this machine"), ("killed", r"does not start: its process ended with signal 9 \(SIGKILL\)")],
)
async def test_a_verifier_that_cannot_start_says_so(starts: str, text: str) -> None:
    children = set(psutil.Process().children())
    with pytest.raises(PreconditionError, match=text):
        async with pool(starts=starts):
            pass
    assert set(psutil.Process().children()) <= children


async def test_a_worker_that_cannot_be_replaced_breaks_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.reward.pool.pool._FIRST_PAUSE_SECONDS", 0.001)
    async with pool(processes=1) as made:
        monkeypatch.setattr(made, "_verifier", ScriptedVerifier(ScriptedSettings(starts="killed")))
        with pytest.raises(PreconditionError, match="does not start"):
            await judge(made, "kill 9", "ok")
        with pytest.raises(PreconditionError, match="does not start"):
            await judge(made, "ok")


async def test_workers_see_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@host")
    async with pool(processes=1) as made:
        assert rewards(await judge(made, "sees REDIS_URL", "sees PATH")) == [0.0, 1.0]


async def test_closing_leaves_no_process_and_no_caller_behind() -> None:
    children = set(psutil.Process().children(recursive=True))
    async with pool() as made:
        await judge(made, "kill 9")
        while made._idle < 2:  # noqa: ASYNC110  # until there is a replacement, which has nothing to do
            await asyncio.sleep(0.01)
        workers = set(psutil.Process().children(recursive=True)) - children
        assert len(workers) == 2
    assert not any(w.is_running() for w in workers)
    async with pool() as made:
        waiting = asyncio.create_task(judge(made, "sleep 60", "sleep 60"))
        await asyncio.sleep(0.2)
        workers = set(psutil.Process().children(recursive=True)) - children
        assert len(workers) == 2
    with pytest.raises(UnavailableError, match="is stopping"):
        await waiting
    assert not any(w.is_running() for w in workers)


async def test_workers_die_with_the_service(repository: Path) -> None:
    script = (
        "import asyncio, psutil\nfrom tests.support.pool import pool, judge\n"
        "async def main():\n"
        "    async with pool() as made:\n"
        "        task = asyncio.create_task(judge(made, 'sleep 60', 'sleep 60'))\n"
        "        await asyncio.sleep(0.2)\n"
        "        print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)\n"
        "        await task\n"
        "asyncio.run(main())"
    )
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=repository
    )
    assert service.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in (await service.stdout.readline()).split()]
    assert len(workers) == 2
    service.kill()
    await service.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, 10)
    assert alive == []
