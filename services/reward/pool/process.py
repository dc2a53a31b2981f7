"""A worker process: one verifier, which judges what the service sends. `python -m services.reward.pool.process`.

Lines of JSON in and out, never pickle. First comes the verifier as {"class", "settings", "memory_mb"}, answered by
{"error": null} or by why it cannot start. Then [first, [[prompt, response, reference], ...]], answered, for
consecutive items, by [last, first, verdicts, which verdict of these each item has, microseconds each]; a verdict is
[reward, parts] or the text "outcome: error".
"""

import importlib
import json
import math
import os
import resource
import sys
import time
from typing import Any, BinaryIO

import setproctitle

from services.reward.outcomes import described
from services.reward.pool.progress import Progress
from services.reward.verifiers.base import BatchVerifier, Item, Verdict, Verifier
from shared.errors import InvalidInputError, RouterShiftError
from shared.process.orphans import die_with_parent

# What is done is reported at least so often: it bounds what is lost, and done again, when the process must be killed.
_REPORT_SECONDS = 0.005


def main() -> None:
    parent, progress_fd = map(int, sys.argv[1:])
    die_with_parent(parent)
    requests, answers = _take_pipes()
    order = json.loads(requests.readline())
    setproctitle.setproctitle(f"routershift verifier {order['name']}")
    # What is allocated, not what is mapped: libraries and weights map far more than they use.
    bytes_allowed = order["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_allowed, bytes_allowed))
    try:
        verifier = _make(order["class"], order["settings"])
        verifier.start()
    except RouterShiftError as error:
        _send(answers, {"error": [type(error).__name__, str(error)]})
        return
    _send(answers, {"error": None})
    judge = _Judge(verifier, Progress(progress_fd), answers)
    for line in requests:
        first, rows = json.loads(line)
        judge.chunk(first, [*map(Item._make, rows)])
    verifier.close()


class _Judge:
    def __init__(self, verifier: Verifier, progress: Progress, answers: BinaryIO) -> None:
        self._verifier = verifier
        self._progress = progress
        self._answers = answers

    def chunk(self, first: int, items: list[Item]) -> None:
        """Judges items `first`, `first + 1`, ... and reports, the last time with last = true."""
        report = self._batch(first, items) if isinstance(self._verifier, BatchVerifier) and len(items) > 1 else None
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
                verdict: Verdict | str = verify(item)
            except InvalidInputError as error:
                verdict = f"refused: {error}"
            except Exception as error:  # whatever a verifier raises is its outcome, and never ends the process
                verdict = f"failed: {described(error, self._verifier)}"
            now = time.monotonic()
            report.add(verdict, now - began)
            if now - reported > _REPORT_SECONDS:
                _send(self._answers, report.message(last=False))
                report, reported = _Report(index + 1), now
        return report

    def _batch(self, first: int, items: list[Item]) -> "_Report | None":
        """None where the batch as a whole fails: one by one, each item gets its own outcome."""
        assert isinstance(self._verifier, BatchVerifier)  # noqa: S101  # the caller looked
        began = time.monotonic()
        self._progress.begin(first, began)
        try:
            verdicts = self._verifier.verify_batch(items)
        except Exception:
            return None
        seconds = (time.monotonic() - began) / len(items)
        report = _Report(first)
        for verdict in verdicts:
            report.add(verdict, seconds)
        return report


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
            self._verdicts.append(_plain(verdict))
        self._which.append(place)
        self._micros.append(int(seconds * 1e6))

    def message(self, last: bool) -> list[Any]:
        return [last, self._first, self._verdicts, self._which, self._micros]


def _plain(verdict: Verdict | str) -> Any:
    if isinstance(verdict, str):
        return verdict
    if not math.isfinite(verdict.reward):
        return f"failed: the reward is {verdict.reward}"
    return [verdict.reward, dict(verdict.parts)]


def _make(path: str, settings: Any) -> Verifier:
    module, _, name = path.partition(":")
    kind: type[Verifier] = getattr(importlib.import_module(module), name)
    return kind(kind.Settings.model_validate(settings))


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Our own copies of stdin and stdout. What a verifier prints goes to stderr, where it cannot pass for an answer."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return requests, answers


def _send(answers: BinaryIO, message: Any) -> None:
    answers.write(json.dumps(message).encode())
    answers.write(b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
