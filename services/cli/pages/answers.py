"""The first lines of a report: a sentence and its numbers for each question."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from services.cli.evaluations import accuracy_interval, independent_samples, of_main_set
from services.cli.pages.run_data import RunData

Tone = Literal["good", "bad", "plain"]
_CLEAR = 1.959964  # standard errors of a difference that chance makes once in twenty
_MUCH = 10.0  # times the median gradient norm


@dataclass(frozen=True, slots=True)
class Answer:
    question: str
    section: str  # where the figures are
    short: str
    details: str
    tone: Tone = "plain"


def answers(run: RunData) -> list[Answer]:
    """In the order in which people ask; none for a question that the records do not answer."""
    return [found for one in (_learnt, _stable, _time, _dropped) if (found := one(run)) is not None]


def dropped(run: RunData) -> dict[str, int]:
    """Trajectories that were not trained on, by reason, most first: of the summary, else as far as the last step."""
    found: Mapping[str, int] = run.summary.get("trajectories_dropped") or (
        run.steps[-1].get("dropped", {}) if run.steps else {}
    )
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def time_shares(run: RunData) -> dict[str, float]:
    """Each phase's share of the learner's time, in the order of the records."""
    seconds: dict[str, float] = {}
    for record in run.steps:
        for phase, spent in record.get("seconds", {}).items():
            seconds[phase] = seconds.get(phase, 0.0) + (spent or 0.0)
    total = sum(seconds.values())
    return {phase: spent / total for phase, spent in seconds.items()} if total else {}


def _learnt(run: RunData) -> Answer | None:
    main = [e for e in of_main_set(run.evaluations) if e["accuracy"] is not None]
    if not main:
        return None
    first, last = main[0], main[-1]
    low, high = accuracy_interval(last)
    now = f"{last['accuracy']:.3f} ({low:.3f} to {high:.3f})"
    if first is last:
        return Answer("Did it learn?", "learning", "Not known yet", f"one evaluation: {now}, version {last['version']}")
    change = last["accuracy"] - first["accuracy"]
    error = math.sqrt(sum(e["accuracy"] * (1 - e["accuracy"]) / max(independent_samples(e), 1) for e in (first, last)))
    details = (
        f"from {first['accuracy']:.3f} to {now} in {last['set']}, versions {first['version']} to {last['version']}; "
        f"{change:+.3f} ± {_CLEAR * error:.3f}"
    )
    if abs(change) <= _CLEAR * error:
        return Answer("Did it learn?", "learning", "No change beyond chance", details)
    better = change > 0
    return Answer(
        "Did it learn?", "learning", "Yes" if better else "It got worse", details, "good" if better else "bad"
    )


def _stable(run: RunData) -> Answer | None:
    norms = _known(run, "grad_norm")
    if not norms:
        return None
    skipped = int(sum(_known(run, "skipped_updates")))
    usual, highest = median(norms), max(norms)
    parts = [f"gradient norm {usual:.3g} (median), {highest:.3g} (highest)"]
    if gammas := _known(run, "gamma_p10"):
        parts.append(f"lowest γ p10 {min(gammas):.4f}")
    if clipped := _known(run, "clip_fraction"):
        parts.append(f"{100 * fmean(clipped):.2g} % of tokens clipped")
    if entropies := _known(run, "entropy"):
        parts.append(f"entropy {entropies[0]:.2f} to {entropies[-1]:.2f}")
    details = "; ".join(parts)
    if skipped:
        return Answer("Is it stable?", "stability", f"{skipped} updates were not finite", details, "bad")
    if usual > 0 and highest > _MUCH * usual:
        return Answer("Is it stable?", "stability", f"Gradient norm jumped {highest / usual:.0f}-fold", details, "bad")
    return Answer("Is it stable?", "stability", "Nothing stands out", details, "good")


def _time(run: RunData) -> Answer | None:
    shares = time_shares(run)
    if not shares:
        return None
    idle = shares.get("wait", 0.0)
    details = "the learner: " + ", ".join(f"{phase} {100 * share:.0f} %" for phase, share in shares.items())
    return Answer("Where does the time go?", "time", f"Learner idle {100 * idle:.0f} %", details)


def _dropped(run: RunData) -> Answer | None:
    found, trained = dropped(run), sum(int(r.get("trajectories", 0)) for r in run.steps)
    trained = run.summary.get("trajectories_trained", trained)
    total = sum(found.values())
    if not run.summary and not any("dropped" in record for record in run.steps):
        return None
    if not total:
        return Answer("What was dropped?", "dropped", "Nothing", f"{trained} trajectories trained on")
    share = total / (total + trained)
    details = ", ".join(f"{reason} {count}" for reason, count in found.items()) + f"; trained on {trained}"
    return Answer("What was dropped?", "dropped", f"{100 * share:.0f} % of trajectories", details)


def _known(run: RunData, name: str) -> list[float]:
    return list(_numbers(run.steps, name))


def _numbers(steps: Sequence[Mapping[str, Any]], name: str) -> Iterator[float]:
    for record in steps:
        if isinstance(value := record.get(name), int | float):
            yield float(value)
