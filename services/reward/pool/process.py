"""A worker process: one verifier, which judges what the service sends. `python -m services.reward.pool.process`.

Lines of JSON in and out, never pickle. First comes the verifier as {"class", "settings", "memory_mb"}, answered by
{"error": null} or by why it cannot start. Then [first, [items, ...]], answered, for
consecutive items, by [last, first, verdicts, which verdict of these each item has, microseconds each]; a verdict is
[reward, parts] or the text "outcome: error".
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import setproctitle

from services.reward.limits import limit_memory
from services.reward.outcomes import Outcome, checked, unscored
from services.reward.pool.progress import Progress
from services.reward.printed import Echo, Printed, too_much
from services.reward.verifiers.base import BatchVerifier, Item, Verdict, Verifier
from shared.errors import RouterShiftError
from shared.process.orphans import die_with_parent

# What is done is reported at least so often: it bounds what is lost, and done again, when the process must be killed.
_REPORT_SECONDS = 0.005


def main() -> None:
    parent, progress_fd, printed_fd = map(int, sys.argv[1:])
    die_with_parent(parent)
    printed, log = Printed(printed_fd), os.dup(2)
    requests, answers = _take_pipes(printed)
    order = json.loads(requests.readline())
    setproctitle.setproctitle(f"routershift verifier {order['name']}")
    limit_memory(order["memory_mb"])
    try:
        verifier = _make(order["class"], order["settings"])
        verifier.start()
    except RouterShiftError as error:
        _send(answers, {"error": [type(error).__name__, str(error)]})
        return
    _send(answers, {"error": None})
    judge = _Judge(verifier, Progress(progress_fd), answers, printed, Echo(printed, order["name"], log))
    for line in requests:
        first, rows = json.loads(line)
        judge.chunk(first, [*map(Item._make, rows)])
    verifier.close()


class _Judge:
    def __init__(
        self, verifier: Verifier, progress: Progress, answers: BinaryIO, printed: Printed, echo: Callable[[], None]
    ) -> None:
        self._verifier = verifier
        self._progress = progress
        self._answers = answers
        self._printed = printed
        self._echo = echo

    def chunk(self, first: int, items: list[Item]) -> None:
        """Judges items `first`, `first + 1`, ... and reports, the last time with last = true."""
        if self._printed.written:  # while it started
            self._echo()
        report = None
        if len(items) > 1 and isinstance(self._verifier, BatchVerifier) and self._verifier.batch_size > 1:
            report = self._batch(self._verifier, first, items)
        _send(self._answers, (report or self._one_by_one(first, items)).message(last=True))

    def _one_by_one(self, first: int, items: list[Item]) -> "_Report":
        """Gives what is not reported yet."""
        verify, progress = self._verifier.verify, self._progress
        report = _Report(first)
        reported = now = time.monotonic()
        for index, item in enumerate(items, first):
            if index >= progress.end:
                break
            began = now
            progress.begin(index, began)
            try:
                verdict: Verdict | str = checked(verify(item))
            except BaseException as error:  # whatever a verifier raises is its outcome, and never ends the process
                verdict = self._unscored(error)
            if self._printed.written:
                verdict = self._heard(verdict)
            now = time.monotonic()
            report.add(verdict, now - began)
            if now - reported > _REPORT_SECONDS:
                _send(self._answers, report.message(last=False))
                report, reported = _Report(index + 1), now
        return report

    def _batch(self, verifier: BatchVerifier, first: int, items: list[Item]) -> "_Report | None":
        """None where the batch as a whole fails: one by one, each item gets its own outcome."""
        began = time.monotonic()
        self._progress.begin(first, began)
        try:
            verdicts = verifier.verify_batch(items)
        except Exception:
            return None
        finally:
            full = self._printed.full
            if self._printed.written:
                self._echo()
        if full or len(verdicts) != len(items):
            return None
        seconds = (time.monotonic() - began) / len(items)
        report = _Report(first)
        for verdict in verdicts:
            try:
                report.add(checked(verdict), seconds)
            except Exception as error:
                report.add(self._unscored(error), seconds)
        return report

    def _unscored(self, error: BaseException) -> str:
        outcome, text = unscored(error, self._verifier)
        return f"{outcome}: {text}"

    def _heard(self, verdict: Verdict | str) -> Verdict | str:
        """The verdict, unless there was too much to hear: what a full output refuses may read like anything else."""
        full, said = self._printed.full, too_much(self._printed.size)
        self._echo()
        if not full or (isinstance(verdict, str) and said in verdict):
            return verdict
        if isinstance(verdict, str):
            return f"{verdict}; {said}"
        place = self._verifier.place
        return f"{Outcome.FAILED}: {place and f'{place}: '}{said}"


class _Report:
    """Results of consecutive items. Equal verdicts are written once: most tell right from wrong and no more."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._known: dict[object, int] = {}
        self._verdicts: list[Any] = []
        self._which: list[int] = []
        self._micros: list[int] = []

    def add(self, verdict: Verdict | str, seconds: float) -> None:
        key = verdict if isinstance(verdict, str) else (verdict.reward, *verdict.parts.items())
        place = self._known.get(key)
        if place is None:
            place = self._known[key] = len(self._verdicts)
            self._verdicts.append(verdict if isinstance(verdict, str) else [verdict.reward, dict(verdict.parts)])
        self._which.append(place)
        self._micros.append(int(seconds * 1e6))

    def message(self, last: bool) -> list[Any]:
        return [last, self._first, self._verdicts, self._which, self._micros]


def _make(path: str, settings: Any) -> Verifier:
    module, _, name = path.partition(":")
    kind: type[Verifier] = getattr(importlib.import_module(module), name)
    return kind(kind.Settings.model_validate(settings))


def _take_pipes(printed: Printed) -> tuple[BinaryIO, BinaryIO]:
    """Our own copies of stdin and stdout: what a verifier prints cannot pass for an answer."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    printed.become_output()
    return requests, answers


def _send(answers: BinaryIO, message: Any) -> None:
    answers.write(json.dumps(message).encode())
    answers.write(b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
