"""The loops of the curriculum: feed prompts while tickets last, evaluate as versions come, watch the streams."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from routershift.v1 import trajectory_pb2 as pb
from services.curriculum import metrics
from services.curriculum.evaluation import Evaluation, evaluate
from services.curriculum.problems import HeldOutSet, Problems
from services.curriculum.prompts import make_prompt
from services.curriculum.selection import Selector
from services.curriculum.settings import Settings
from shared.clients import GenerationClient
from shared.errors import DeadlineError, OverloadedError, RouterShiftError
from shared.streams import saved
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, Run, group_name
from shared.tracing import spans
from shared.tracing.kinds import ADMIT
from shared.tracking.recording import Recording

log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
_REPORT_SECONDS = 1.0
_STATUS_SECONDS = 10.0
_LINE_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 5.0
# Answers of an admission that has to be asked again.
_WAITS = ("tickets", "full", "finished")


class CurriculumWorker:
    def __init__(self, settings: Settings, problems: Problems, run: Run) -> None:
        self._settings = settings
        selection = settings.curriculum.selection
        self._selector = Selector(problems, selection, settings.run.seed, run.solve_rates)
        self._run = run
        self._recording = Recording(settings, "curriculum")
        self._reported = 0.0  # when the progress of an evaluation was
        self._poll = settings.curriculum.poll_seconds
        self._held_out = problems.held_out()

    async def close(self) -> None:
        """Gives trackers the time to send what they hold."""
        await asyncio.to_thread(self._recording.close)

    async def run(self) -> None:
        """Evaluates the start, then feeds and evaluates for as long as the run lasts. May be cancelled anywhere."""
        await self.evaluate_start()
        await asyncio.gather(self.feed(), self.evaluate_versions())

    async def feed(self) -> None:
        """Admits prompts in order, each when a ticket is free, while the learner trains."""
        await self._selector.open()
        while True:
            # What was admitted last is known to Redis alone: an answer may be lost, and so may its last writes.
            progress = await self._run.progress()
            index, selected = progress.prompts or 0, await self._selector.select(progress.selection)
            prompt = make_prompt(index, selected.problem, self._settings.run, self._settings.rollout)
            answer = await self._admit(index, prompt, selected.state)
            if answer == "ok":
                metrics.PROMPTS.inc()
                for choice, count in selected.choices.items():
                    metrics.CHOICES.labels(choice).inc(count)

    async def _admit(self, index: int, prompt: pb.Prompt, selection: Mapping[str, Any]) -> str:
        """Waits for the ticket of a prompt, with which its trace begins; gives the last answer of the admission."""
        span, waited = spans.root(ADMIT), Counter[str]()
        while (
            answer := await self._run.admit(index, prompt, self._settings.run.tickets, selection, span.traceparent)
        ) in _WAITS:
            metrics.WAIT_SECONDS.labels(answer).inc(self._poll)
            waited[answer] += 1
            await asyncio.sleep(self._poll)
        if answer in ("ok", "done"):  # done: admitted, though the answer that said so was lost
            span.set(
                {
                    "group": group_name(prompt),
                    "problem": prompt.problem_id,
                    "verifier": prompt.verifier,
                    "samples": prompt.sampling.n,
                    "tickets_seconds": waited["tickets"] * self._poll,
                    "full_seconds": waited["full"] * self._poll,
                }
            )
            span.end()
        return answer

    async def evaluate_start(self) -> None:
        """Evaluates the weights that the run starts from, before anything is trained; once in a run.

        It is also the proof that prompts of this task fit the model and pass every check.

        Raises:
            InvalidInputError: generation refuses the prompts or their sampling.
            DeadlineError: generation or reward gave no answer for `patience_seconds`.
        """
        if (await self._run.progress()).evaluated_version is None:
            # A run that was forked starts from a checkpoint: it is the version of its step that has to be served.
            start = saved.newest(self._settings.run.checkpoints_root)
            await self._evaluate_sets(start[1].step if start else 0, self._held_out)

    async def evaluate_versions(self) -> None:
        """Evaluates every multiple of `run.evaluate_every`, and the last version, each on the sets that are due.

        These are the versions that the learner keeps. A multiple that is published while another is evaluated is passed
        over: by the time it had its turn, later versions would answer for it. One that was due when the run was stopped
        has its turn when the run goes on: its record says which versions answered.
        """
        every = self._settings.run.evaluate_every
        progress = await self._run.progress()
        evaluated = passed = progress.evaluated_version or 0
        while True:
            progress = await self._run.progress()
            version, finished = progress.version or 0, progress.phase == FINISHED
            due = version if finished else version // every * every if every else 0
            if due > evaluated and (finished or due >= passed):
                await self._try_evaluate(due, [s for s in self._held_out if finished or _is_due(s, evaluated, due)])
                evaluated, passed = due, (await self._run.progress()).version or due
            if finished:
                await self._run.report_progress(Progress(final_evaluation=version))
            await asyncio.sleep(self._poll)

    async def watch(self) -> None:
        """Keeps the gauges of streams, tickets, memory and ledger fresh."""
        while True:
            for stream, backlog in (await self._run.backlog()).items():
                metrics.STREAM_ENTRIES.labels(stream).set(backlog.entries)
                metrics.STREAM_BYTES.labels(stream).set(backlog.bytes)
                metrics.STREAM_AGE.labels(stream).set(backlog.oldest_seconds)
            metrics.DEAD_LETTERS.set(await self._run.dead_letters())
            metrics.TICKETS.set(await self._run.tickets_held())
            memory = await self._run.memory()
            metrics.REDIS_MEMORY.set(memory.used)
            metrics.REDIS_LIMIT.set(memory.limit)
            ledger = await self._run.ledger()
            for state in ("prompted", "trained", "in_flight"):
                metrics.LEDGER.labels(state).set(getattr(ledger, state))
            metrics.LEDGER.labels("dropped").set(sum(ledger.dropped.values()))
            metrics.LEDGER.labels("dead").set(sum(ledger.dead.values()))
            await asyncio.sleep(_WATCH_SECONDS)

    async def _try_evaluate(self, version: int, sets: Sequence[HeldOutSet]) -> None:
        """A failure on the way is counted, and a later version gets its chance."""
        try:
            await self._run.report_progress(Progress(evaluating_version=version))
            await self._evaluate_sets(version, sets)
        except RouterShiftError as error:
            metrics.EVALUATIONS.labels("failed").inc()
            log.warning("evaluation of version %d failed: %s", version, error)

    async def _evaluate_sets(self, version: int, sets: Sequence[HeldOutSet]) -> None:
        """One after the other; raises what `_evaluate_patiently` raises."""
        for held_out in sets:
            version = await self._evaluate_patiently(version, held_out)
        await self._run.report_progress(Progress(evaluated_version=version))
        metrics.EVALUATED_VERSION.set(version)

    async def _evaluate(self, version: int, held_out: HeldOutSet) -> None:
        """Evaluates what generation serves now, in the name of `version`, and publishes the result."""
        is_main = held_out is self._held_out[0]
        result = await evaluate(held_out, version, self._settings, is_main, self._report_answered)
        self._recording.add("evaluation", result.as_record())
        earlier = await self._run.progress()
        known = {"version": version, "accuracy": result.accuracy, "greedy_accuracy": result.greedy_accuracy}
        if result.mean_turns > 1:
            known["mean_turns"] = result.mean_turns
        await self._run.report_progress(Progress(held_out={**(earlier.held_out or {}), held_out.name: known}))
        if is_main:
            await self._report_main(result, earlier)
        metrics.EVALUATIONS.labels("ok").inc()
        metrics.ACCURACY.labels(held_out.name, "sampled").set(result.accuracy)
        if result.greedy_accuracy is not None:
            metrics.ACCURACY.labels(held_out.name, "greedy").set(result.greedy_accuracy)
        metrics.TURNS.labels(held_out.name).set(result.mean_turns)
        for k, share in result.pass_at_k.items():
            metrics.PASS_AT_K.labels(held_out.name, k).set(share)
        log.info(
            "version %d: accuracy %.3f on held-out set %s, sampled by versions %d to %d (%.1f s)",
            version, result.accuracy, held_out.name, result.oldest_version, result.newest_version, result.seconds,
        )  # fmt: skip

    async def _report_main(self, result: Evaluation, earlier: Progress) -> None:
        """The accuracy of the run, and its best version, are those of the main set."""
        best_version = result.version if earlier.best_version is None else earlier.best_version
        best_accuracy = earlier.best_accuracy or 0.0
        if result.accuracy > best_accuracy:
            best_version, best_accuracy = result.version, result.accuracy
        await self._run.report_progress(
            Progress(
                accuracy=result.accuracy,
                greedy_accuracy=result.greedy_accuracy,
                best_version=best_version,
                best_accuracy=best_accuracy,
                accuracies=earlier.with_accuracy(result.version, result.accuracy),
            )
        )
        metrics.BEST_VERSION.set(best_version)
        metrics.BEST_ACCURACY.set(best_accuracy)

    async def _report_answered(self, problems: int) -> None:
        """So that a long evaluation can be told from one that stands still."""
        now = time.monotonic()
        if now - self._reported > _REPORT_SECONDS:
            self._reported = now
            await self._run.report_progress(Progress(evaluated_problems=problems))

    async def _evaluate_patiently(self, version: int, held_out: HeldOutSet) -> int:
        """Evaluates as soon as generation serves this version; services that are being restarted are waited for.

        Version 0 stands for the one that is served. Gives the version that was evaluated.

        Raises:
            DeadlineError: not done `patience_seconds` after the first attempt failed.
        """
        patience, began = self._settings.curriculum.evaluation.patience_seconds, time.monotonic()
        failed: float | None = None
        said, pause = began, self._poll
        while True:
            try:
                served = await self._served()
                if served >= version:
                    await self._evaluate(version or served, held_out)
                    return version or served
                reason, pause = f"generation serves version {served}", self._poll
            except (OSError, OverloadedError) as error:  # no answer, no answer in time, or no space for the record
                reason, pause = str(error), min(2 * pause, _LONGEST_PAUSE_SECONDS)
                if isinstance(error, DeadlineError):
                    reason += " (curriculum.evaluation.answer_seconds)"
            now = time.monotonic()
            failed = failed or now
            if now - failed > patience:
                raise DeadlineError(
                    f"version {version} is not evaluated after {now - began:.0f} s: {reason}; raise "
                    "curriculum.evaluation.patience_seconds if generation and reward only need longer"
                )
            if now - said > _LINE_SECONDS:
                said = now
                log.info("the evaluation of version %d has waited for %.0f s: %s", version, now - began, reason)
            await asyncio.sleep(pause)

    async def _served(self) -> int:
        """The version that generation serves."""
        address, access = self._settings.curriculum.generation_address, self._settings.access
        async with GenerationClient(address, _STATUS_SECONDS, access) as generation:
            return int((await generation.status()).version)


def _is_due(held_out: HeldOutSet, evaluated: int, version: int) -> bool:
    """Whether a multiple of the set's `every` lies after the version evaluated last, up to this one."""
    return held_out.every > 0 and version // held_out.every > evaluated // held_out.every
