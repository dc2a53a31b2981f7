"""Follows a run from outside: shows what is new, says in words what is wrong, and gives up where nothing moves."""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from services.cli.evaluations import takes_turns, versions_in_words
from services.cli.live.losses import DropRate, in_words, lost_between
from services.cli.live.pace import STEPS, pace
from services.cli.live.words import duration, number
from services.cli.progress_line import Show, say
from services.cli.recipe import Recipe
from shared.errors import DeadlineError, UnavailableError
from shared.streams.account import Ledger
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, PAUSED, TRAINING, Run
from shared.tracking import records

_LEDGER_SECONDS = 2.0  # between looks at the ledger
_SAY_SECONDS = 15.0  # in which every group was dropped, after which that is said; and again after twice as long
_QUIET_SECONDS = 60.0  # without a line about a step, after which the next one gets one
_JUDGED = 4  # steps' worth of trajectories over which the share of dropped ones is taken
_MANY = 8  # steps' worth of dropped groups that are worth a word although some group was of use


class Monitor:
    """What has happened since the last look, and how long nothing has.

    Progress is a step, an evaluation, a part of one, or a group that came nearer to the learner without being dropped.
    Time that the learner spends in a step is limited by `supervisor.step_seconds`, all other waiting by
    `supervisor.progress_seconds`.
    """

    def __init__(self, recipe: Recipe, since: datetime | None = None, show: Show = lambda _: None) -> None:
        """
        Args:
            since: what was recorded before is of an earlier start, and not said again; None: there was none.
            show: takes the progress line at every look.
        """
        self._recipe = recipe
        self._since = since
        self._show = show
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
        self._has_stepped = False  # in this start
        self._begun = False  # whether it is known at which step this start goes on
        self._said_step = -math.inf  # when the last line about a step was said
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=STEPS)  # records of steps
        self._drops = DropRate(_JUDGED * recipe.run.groups_per_step * recipe.rollout.n)

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
                high = self._drops.note(self._ledger) if progress.phase != FINISHED else ""
                if high and self._has_stepped:  # before the first step, `reason` says it
                    say(high)
        self._show_records(progress)
        self._show_phase(progress.phase)
        self._show(self._line(progress))
        self._note(progress)
        if progress.phase != FINISHED:  # no further step is due, and what is still on its way is dropped
            self._warn()
        self._require_progress()
        return progress

    def _show_records(self, progress: Progress) -> None:
        steps, evaluations = self._learner.read(), self._evaluations.read()
        self._recent.extend(steps)
        if not all(map(self._is_new, [*steps, *evaluations])):
            steps, evaluations = ([r for r in found if self._is_new(r)] for found in (steps, evaluations))
        self._say_where_it_goes_on(steps[0]["step"] - 1 if steps else progress.step)
        for record in evaluations:
            say(_evaluation_line(record), datetime.fromisoformat(record["time"]))
        for record in steps:
            self._say_step(record)
        if steps or evaluations:
            self._moved = time.monotonic()
        if steps:
            self._has_stepped = True
            self._stepped = self._lost_since = time.monotonic()
            self._before, self._say_after = self._ledger, _SAY_SECONDS

    def _is_new(self, record: Mapping[str, Any]) -> bool:
        return self._since is None or datetime.fromisoformat(record["time"]) >= self._since

    def _say_where_it_goes_on(self, done: int | None) -> None:
        """Once, as soon as it is known how many steps were done before this start."""
        if self._begun or done is None:
            return
        self._begun, steps = True, self._recipe.run.steps
        if done >= steps:
            say(f"all {steps} steps were done before; what is left to evaluate is evaluated")
        elif done:
            say(f"going on with step {done + 1} of {steps}: {done} were done before")

    def _say_step(self, record: Mapping[str, Any]) -> None:
        """Every tenth, the first and the last, and any when nothing was said for a while."""
        step, steps = record["step"], self._recipe.run.steps
        quiet = time.monotonic() - self._said_step
        if step % 10 and step not in (1, steps) and quiet < _QUIET_SECONDS:
            return
        self._said_step = time.monotonic()
        parts = [
            f"reward {number(record['reward_mean'], 3)}",
            f"staleness {record['staleness_max']}",
            f"gamma {number(record.get('gamma_mean', 1.0), 4)}",
            *self._rates(step),
        ]
        say(f"step {step:>4}/{steps}: {', '.join(parts)}", datetime.fromisoformat(record["time"]))

    def _rates(self, step: int) -> list[str]:
        """How long the rest takes, speed and losses, as far as they are known."""
        found = pace(list(self._recent))
        rates = []
        if found is not None:
            remaining = found.remaining_seconds(step, self._recipe.run.steps)
            rates += [f"{duration(remaining)} left"] if remaining else []
            rates.append(f"{found.tokens_per_second:,.0f} tokens/s")
        if self._drops.share is not None:
            rates.append(f"{self._drops.share:.0%} dropped")
        return rates

    def _line(self, progress: Progress) -> str:
        """Where the run is, in a line."""
        if progress.step is None:
            return "Redis does not answer" if self._begun else "waiting for the learner"
        step, steps = progress.step, self._recipe.run.steps
        parts = [f"step {step}/{steps}", *self._rates(step)]
        if progress.phase == TRAINING:
            waiting = f"{progress.collected or 0} of {self._recipe.run.groups_per_step} groups for the next"
            parts.append("training" if progress.activity == "training" else waiting)
        elif progress.phase is not None:
            parts.append(progress.phase)
        if progress.evaluating_version is not None and progress.evaluating_version != progress.evaluated_version:
            parts.append(
                f"evaluating version {progress.evaluating_version}: {progress.evaluated_problems or 0} problems"
            )
        return ", ".join(parts)

    def _show_phase(self, phase: str | None) -> None:
        if phase == PAUSED != self._phase:
            say("the learner is paused, and goes on after `routershift resume RUN`")
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
        groups = {r: count // self._recipe.rollout.n for r, count in lost_between(self._before, self._ledger).items()}
        return {reason: count for reason, count in groups.items() if count > 0}

    def reason(self) -> str:
        """Why there is no step, in words; "" where nothing is known."""
        lost = self._lost()
        total, wanted = sum(lost.values()), self._recipe.run.groups_per_step
        if not lost:
            return ""
        if len(lost) == 1:
            found = f"all {total} groups that ended since the last step {in_words(*lost)}"
        else:
            parts = "; ".join(f"{groups} {in_words(reason)}" for reason, groups in lost.items())
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


def _evaluation_line(record: Mapping[str, Any]) -> str:
    shares = {"greedy": record["greedy_accuracy"]} | {f"pass@{k}": p for k, p in record["pass_at_k"].items()}
    others = ", ".join(f"{name} {share:.3f}" for name, share in shares.items() if share is not None)
    sampled_by = versions_in_words(record)
    turns = f" in {record['mean_turns']:.2f} turns" if takes_turns([record]) else ""
    return (
        f"version {record['version']:>4}: held-out accuracy {record['accuracy']:.3f} in {record['set']}"
        f"{f' ({others})' if others else ''}{turns} "
        f"on {record['problems']} problems x {record['samples'] // record['problems']}"
        f"{f', {sampled_by}' if sampled_by else ''}"
    )
