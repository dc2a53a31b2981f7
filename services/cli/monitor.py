"""Follows a run from outside: shows what is new, says in words what is wrong, and gives up where nothing moves."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from services.cli.evaluations import versions_in_words
from services.cli.recipe import Recipe
from shared.errors import DeadlineError, UnavailableError
from shared.streams.account import Ledger
from shared.streams.progress import Progress
from shared.streams.run import PAUSED, Run
from shared.tracking import records

_LEDGER_SECONDS = 2.0  # between looks at the ledger
_SAY_SECONDS = 15.0  # in which every group was dropped, after which that is said; and again after twice as long
_MANY = 8  # steps' worth of dropped groups that are worth a word although some group was of use
_IN_WORDS = {
    "zero_variance": "had equal rewards for all their responses (zero variance), which teaches nothing: check the "
    "verifier and the prompts' difficulty, set curriculum.selection.strategy to dynamic where prompts come back, or "
    "raise rollout.n or rollout.temperature",
    "stale": "were too stale: raise run.max_staleness, or look for why generation does not load new weights in "
    "logs/generation.jsonl",
    "missing_traces": "came without router traces; see generation.router_export",
}


class Monitor:
    """What has happened since the last look, and how long nothing has.

    Progress is a step, an evaluation, a part of one, or a group that came nearer to the learner without being dropped.
    Time that the learner spends in a step is limited by `supervisor.step_seconds`, all other waiting by
    `supervisor.progress_seconds`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._learner = records.Tail(recipe.run.path / records.LEARNER)
        self._evaluations = records.Tail(recipe.run.path / records.EVALUATIONS)
        self._phase: str | None = None
        self._busy = False
        self._moved = self._stepped = time.monotonic()
        self._seen: Progress | None = None
        self._arrived = 0  # most trajectories that had reached the learner at one time
        self._collected = 0  # groups that the learner has for its next step
        self._ledger: Ledger | None = None  # at the last look
        self._ledger_at = -_LEDGER_SECONDS
        self._before: Ledger | None = None  # when the last step ended, or at the first look
        self._lost_since = time.monotonic()
        self._say_after = _SAY_SECONDS

    async def update(self, run: Run) -> Progress:
        """Looks once; gives the run's progress, which is empty while Redis does not answer.

        Raises:
            DeadlineError: nothing has moved for too long; says why, as far as that is known.
        """
        progress = Progress()
        # A Redis that is being restarted is no news; if it stays away, the deadline passes.
        with contextlib.suppress(UnavailableError):
            progress = await run.progress()
            if time.monotonic() - self._ledger_at >= _LEDGER_SECONDS:
                self._ledger = await run.ledger()
                self._ledger_at = time.monotonic()
                self._before = self._before or self._ledger
        self._show_records()
        self._show_phase(progress.phase)
        self._note(progress)
        self._warn()
        self._require_progress()
        return progress

    def _show_records(self) -> None:
        steps, evaluations = self._learner.read(), self._evaluations.read()
        for record in evaluations:
            say(_evaluation_line(record))
        for record in steps:
            if record["step"] % 10 == 0 or record["step"] in (1, self._recipe.run.steps):
                say(
                    f"step {record['step']:>4}/{self._recipe.run.steps}: reward {_finite(record['reward_mean']):.3f}, "
                    f"staleness {record['staleness_max']}, gamma {_finite(record.get('gamma_mean', 1.0)):.4f}"
                )
        if steps or evaluations:
            self._moved = time.monotonic()
        if steps:
            self._stepped = self._lost_since = time.monotonic()
            self._before, self._say_after = self._ledger, _SAY_SECONDS

    def _show_phase(self, phase: str | None) -> None:
        if phase == PAUSED != self._phase:
            say("the learner is paused, and goes on when LearnerService.Resume is called")
        self._phase = phase

    def _note(self, progress: Progress) -> None:
        """Whether anything moved. Prompts that are admitted are none: they are also where all of them are dropped."""
        self._busy = progress.activity == "training"
        self._collected = progress.collected or 0
        seen = dataclasses.replace(progress, prompts=None, selection=None)
        arrived = self._ledger.trained + self._ledger.stages.get("scored", 0) if self._ledger else 0
        if seen != self._seen or arrived > self._arrived or self._phase == PAUSED:
            self._moved = time.monotonic()
        self._seen, self._arrived = seen, max(arrived, self._arrived)

    def _lost(self) -> dict[str, int]:
        """Groups that ended untrained since the last step, by reason; `dead: REASON` for dead letters."""
        if self._ledger is None or self._before is None:
            return {}
        now, before = _ends(self._ledger), _ends(self._before)
        size = self._recipe.rollout.n
        lost = {reason: (count - before.get(reason, 0)) // size for reason, count in now.items()}
        return {reason: groups for reason, groups in lost.items() if groups > 0}

    def reason(self) -> str:
        """Why there is no step, in words; "" where nothing is known."""
        lost = self._lost()
        total, wanted = sum(lost.values()), self._recipe.run.groups_per_step
        if not lost:
            return ""
        if len(lost) == 1:
            found = f"all {total} groups that ended since the last step {_in_words(*lost)}"
        else:
            parts = "; ".join(f"{groups} {_in_words(reason)}" for reason, groups in lost.items())
            found = f"all {total} groups that ended since the last step were lost: {parts}"
        return f"{found} ({self._collected} of the {wanted} groups of a step are there)"

    def _warn(self) -> None:
        """Says why there is no step, again after twice the time."""
        lost = sum(self._lost().values())
        few = lost < _MANY * self._recipe.run.groups_per_step and self._collected > 0
        if self._busy or few or not lost:
            self._lost_since = time.monotonic()
        elif time.monotonic() - self._lost_since > self._say_after:
            self._say_after *= 2
            say(f"no step for {time.monotonic() - self._stepped:.0f} s: {self.reason()}")

    def _require_progress(self) -> None:
        supervisor, logs = self._recipe.supervisor, self._recipe.run.path / "logs"
        idle = time.monotonic() - self._moved
        if self._busy and idle > supervisor.step_seconds:
            raise DeadlineError(
                f"the learner has been in one step for {idle:.0f} s; raise supervisor.step_seconds if its steps are "
                f"that long, else see {logs}"
            )
        if not self._busy and idle > supervisor.progress_seconds:
            why = self.reason()
            raise DeadlineError(
                f"no progress towards a step for {idle:.0f} s{f': {why}' if why else ''}; see {logs}, or raise "
                "supervisor.progress_seconds"
            )


def say(text: str) -> None:
    """A line on stderr, with the time."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _finite(value: float | None) -> float:
    """A number of a record, where null stands for what is not finite."""
    return math.nan if value is None else value


def _evaluation_line(record: Mapping[str, Any]) -> str:
    shares = {"greedy": record["greedy_accuracy"]} | {f"pass@{k}": p for k, p in record["pass_at_k"].items()}
    others = ", ".join(f"{name} {share:.3f}" for name, share in shares.items() if share is not None)
    sampled_by = versions_in_words(record)
    return (
        f"version {record['version']:>4}: held-out accuracy {record['accuracy']:.3f} in {record['set']}"
        f"{f' ({others})' if others else ''} "
        f"on {record['problems']} problems x {record['samples'] // record['problems']}"
        f"{f', {sampled_by}' if sampled_by else ''}"
    )


def _ends(ledger: Ledger) -> dict[str, int]:
    return {**ledger.dropped, **{f"dead: {reason}": count for reason, count in ledger.dead.items()}}


def _in_words(reason: str) -> str:
    if reason.startswith("dead: "):
        return f"went to the dead letters ({reason.removeprefix('dead: ')}); see `routershift dead RUN list`"
    return _IN_WORDS.get(reason, f"were dropped ({reason})")
