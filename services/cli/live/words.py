"""A run at one moment, in words: rows of a label and a text, for terminals and for pipes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.cli.evaluations import takes_turns
from services.cli.live.look import Look
from services.cli.live.losses import MANY, in_words, judged, lost
from shared.streams.account import Ledger
from shared.streams.keys import READERS, STAGES, Stream
from shared.streams.run import FINISHED


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    text: str
    level: str = ""  # warning or error, where a person should look


def rows(now: Look, before: Look | None = None) -> list[Row]:
    """What there is to say, top to bottom.

    Args:
        before: an earlier look, from which rates are taken; without one, rates are those of the last steps.
    """
    return [*_where(now), *_flow(now, before), *_training(now), *_held_out(now), *_account(now), *_problems(now)]


def text(shown: Sequence[Row]) -> str:
    """Lines for a pipe, without colours; they end with a line break."""
    width = max(len(row.label) for row in shown)
    return "".join(f"{row.label:<{width}}  {row.text}\n" for row in shown)


def duration(seconds: float) -> str:
    """In two units at most: `42 s`, `3 min`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def number(value: float | None, digits: int) -> str:
    """A number of a record, where None stands for what is not finite."""
    return "nan" if value is None else f"{value:.{digits}f}"


def _where(now: Look) -> Iterator[Row]:
    progress = now.progress
    if now.finished:
        state = "finished"
    elif not now.live:
        state = f"stopped while {progress.phase or 'starting'}; this is what it left"
    elif progress.phase == FINISHED:
        state = "trained, and being evaluated for the last time"
    else:
        state = progress.phase or "starting"
    yield Row("run", f"{now.run}: {state}")
    step = f"{progress.step or 0} of {progress.total_steps if progress.total_steps is not None else '?'}"
    if progress.version is not None:
        step += f", version {progress.version}"
    remaining = now.remaining_seconds
    if now.live and remaining is not None and not now.finished:
        step += f", {duration(remaining)} left" if remaining else ", none left"
    if now.pace is not None:
        step += f", {now.pace.seconds_per_step:.3g} s each"
    yield Row("step", step)


def _flow(now: Look, before: Look | None) -> Iterator[Row]:
    """Each stream with its depth, and how many groups a second leave it, however they do."""
    rates = _rates(now, before)
    for stream in _used(now):
        held, reader = now.backlog[stream], READERS[stream]
        oldest = duration(held.oldest_seconds) if held.entries else "-"
        rate = f"{rates[stream]:>9.1f} trajectories/s" if stream in rates else ""
        size = f"{held.entries:>6} groups {held.bytes / 2**20:>8.1f} MiB, oldest {oldest:>9}"
        yield Row(stream, f"{size}{rate} -> {reader}")
    activity = now.progress.activity if now.live else "ended"
    collected = now.progress.collected or 0
    speed = "" if now.pace is None else f"; {now.pace.tokens_per_second:,.0f} tokens/s trained"
    yield Row("learner", f"{collected:>6} groups for its next step; {activity or 'not there yet'}{speed}")
    yield Row("tickets", f"{now.tickets_held:>6} held by groups on their way")
    if selection := now.progress.selection:
        choices = ", ".join(f"{choice} {count}" for choice, count in selection["choices"].items())
        yield Row("selection", f"{selection['strategy']}, {selection['turns']} turns: {choices}")


def _used(now: Look) -> list[Stream]:
    """The streams that groups of this run take, as far as is known: none is of episodes before there are any."""
    used = [stream for stream in Stream if now.backlog[stream].is_used]
    if Stream.EPISODES in used:
        return [stream for stream in Stream if stream in used or stream is Stream.SCORED]
    return [stream for stream in Stream if stream is not Stream.EPISODES]


def _rates(now: Look, before: Look | None) -> dict[Stream, float]:
    """Trajectories a second that leave each stream, where the ledger tells: it knows stages, not ways through them."""
    if before is None or now.at <= before.at:
        return {}
    past, present = _left(before.ledger), _left(now.ledger)
    used = _used(now)
    if Stream.PROMPTS in used and Stream.EPISODES in used:
        used = [Stream.SCORED]
    # A dead letter that is replayed is on its way again.
    return {stream: max(0, present[STAGES[stream]] - past[STAGES[stream]]) / (now.at - before.at) for stream in used}


def _left(ledger: Ledger) -> dict[str, int]:
    """Trajectories that have left each stage since the run began: those further on, and all that have ended."""
    left, beyond = {}, ledger.prompted - ledger.in_flight
    for stage in reversed(dict.fromkeys(STAGES.values())):
        left[stage] = beyond
        beyond += ledger.stages[stage]
    return left


def _training(now: Look) -> Iterator[Row]:
    found: dict[str, Any] = now.metrics
    if not found:
        return
    parts = [f"reward {number(found['reward_mean'], 3)}"]
    if "train_accuracy" in found:
        parts.append(f"accuracy {number(found['train_accuracy'], 3)}")
    parts.append(f"staleness {number(found['staleness_mean'], 1)} (at most {found['staleness_max']})")
    if "gamma_mean" in found:
        parts.append(f"gamma {number(found['gamma_mean'], 4)} (p10 {number(found.get('gamma_p10'), 4)})")
    parts += [f"{name} {number(found[name], 3)}" for name in ("entropy", "kl") if name in found]
    if now.live and not now.finished:
        age = datetime.now(UTC) - datetime.fromisoformat(now.step["time"])
        parts.append(f"{duration(max(0.0, age.total_seconds()))} ago")
    yield Row("last step", ", ".join(parts))


def _held_out(now: Look) -> Iterator[Row]:
    progress = now.progress
    for name, found in (progress.held_out or {}).items():
        greedy = "" if found.get("greedy_accuracy") is None else f", greedy {found['greedy_accuracy']:.3f}"
        turns = f", {found['mean_turns']:.2f} turns" if takes_turns([found]) else ""
        yield Row(
            "held-out", f"{name}: accuracy {number(found['accuracy'], 3)}{greedy}{turns} at version {found['version']}"
        )
    if progress.best_version is not None:
        yield Row("best", f"version {progress.best_version}, accuracy {number(progress.best_accuracy, 3)}")
    evaluating = progress.evaluating_version
    if evaluating is not None and evaluating != progress.evaluated_version and now.live:
        yield Row("evaluating", f"version {evaluating}, {progress.evaluated_problems or 0} problems so far")


def _account(now: Look) -> Iterator[Row]:
    ledger, lost_by_reason = now.ledger, lost(now.ledger)
    total = sum(lost_by_reason.values())
    unbalanced = "" if ledger.balanced else "; THIS DOES NOT BALANCE: see `routershift audit`"
    yield Row(
        "ledger",
        f"{ledger.prompted} prompted = {ledger.trained} trained + {total} dropped or dead + {ledger.in_flight} in "
        f"flight{unbalanced}",
        "" if ledger.balanced else "error",
    )
    if total:
        share = total / judged(ledger)
        reasons = sorted(lost_by_reason.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{reason} {count}" for reason, count in reasons)
        high = f"; they {in_words(reasons[0][0])}" if share > MANY else ""
        yield Row("dropped", f"{share:.0%} of all judged: {parts}{high}", "warning" if high else "")
    if now.dead_letters:
        yield Row("dead", f"{now.dead_letters} letters; see `routershift dead {now.run} list`", "warning")


def _problems(now: Look) -> Iterator[Row]:
    for problem in now.problems:
        when = problem.time.astimezone().strftime("%m-%d %H:%M:%S")
        level = "warning" if problem.level == "warning" else "error"
        yield Row(level, f"{when} {problem.service}: {problem.message}", level)
