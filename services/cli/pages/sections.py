"""What a report shows, in the order in which people ask."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from services.cli.evaluations import accuracy_interval, by_set, interval, versions_in_words
from services.cli.pages.figures import HeatMap, Lines, Section, Series, Value, curve, heat_map, rounded
from services.cli.pages.run_data import RunData

_Curves = Mapping[str, Callable[[Mapping[str, Any]], Value]]  # by name, what a record has of it


def sections(runs: Sequence[RunData], names: Sequence[str]) -> list[Section]:
    """Every section, with the figures that have something to show."""
    found = [
        Section("learning", "Learning", "Did it learn?",
                "Held-out accuracy with 95 % intervals, and the batches it trained on.",
                [*_accuracies(runs), *_of_steps(runs, _LEARNING)]),
        Section("stability", "Stability", "Is it stable?", "What moves first when a run is about to collapse.",
                _of_steps(runs, _STABILITY)),
        Section("drift", "Drift", "Router drift",
                "How far the routers of the learner have moved from those that sampled, by layer.",
                _heat_maps(runs, names, _DRIFT)),
        Section("load", "Load", "Expert load", "How evenly the routers spread tokens over experts, by layer.",
                _heat_maps(runs, names, _LOAD)),
        Section("time", "Time", "Where does the time go?",
                "Seconds of the learner by phase, and how much work waits in each stream.",
                [*_phases(runs, names), *_of_steps(runs, _TIME), *_queues(runs)]),
        Section("dropped", "Dropped", "What was dropped, and why?",
                "Trajectories that were sampled and not trained on.",
                _dropped(runs, names)),
    ]  # fmt: skip
    shown = {name for figure in (*_LEARNING, *_STABILITY, *_TIME) for name in figure[4]}
    others = Section("others", "", "Everything else that was recorded", "", list(_others(runs, shown)))
    return [*found, others]


def _of(name: str) -> Callable[[Mapping[str, Any]], Value]:
    return lambda record: record.get(name)


def _each(*names: str) -> _Curves:
    return {name: _of(name) for name in names}


def _response_length(record: Mapping[str, Any]) -> Value:
    tokens, trajectories = record.get("tokens"), record.get("trajectories")
    return tokens / trajectories if tokens is not None and trajectories else None


def _tokens_per_second(record: Mapping[str, Any]) -> Value:
    tokens, seconds = record.get("tokens"), sum(record.get("seconds", {}).values())
    return tokens / seconds if tokens is not None and seconds else None


# id, title, note, options, curves
_Figure = tuple[str, str, str, dict[str, Any], _Curves]
_LEARNING: Sequence[_Figure] = (
    ("reward", "Reward", "Mean over the batch.", {}, _each("reward_mean")),
    ("train_accuracy", "Accuracy in training", "Share of correct responses of the batch. Groups that were dropped for "
     "equal rewards are not in it.", {}, _each("train_accuracy")),
    ("length", "Response length", "Mean tokens of a response that was trained on.", {"unit": "tokens"},
     {"response_tokens_mean": _response_length}),
)  # fmt: skip
_STABILITY: Sequence[_Figure] = (
    ("grad_norm", "Gradient norm", "Before clipping, on a logarithmic scale.", {"log": True}, _each("grad_norm")),
    ("gamma", "Router shift factor γ", "1: the router has not moved. At lag zero only the two engines' mismatch is "
     "left.", {}, _each("gamma_mean", "gamma_p10", "gamma_at_lag_zero", "gamma_at_lag_zero_p10")),
    ("ratio", "Importance ratio", "Learner over sampler, per token.", {}, _each("ratio_mean", "ratio_max")),
    ("fractions", "Tokens clipped and dropped", "Shares of the batch's tokens.", {},
     _each("clip_fraction", "dropped_fraction", "gamma_floor_fraction", "missing_route_fraction")),
    ("entropy", "Entropy", "Of the policy over response tokens.", {"unit": "nats"}, _each("entropy")),
    ("kl", "KL divergence", "From the sampler, and from the model of the start where that is measured.",
     {"unit": "nats"}, _each("kl", "reference_kl")),
    ("loss", "Loss", "Of the update; its size says little, its jumps say much.", {}, _each("loss")),
    ("staleness", "Staleness", "Versions between sampling and training.", {"unit": "versions"},
     _each("staleness_mean", "staleness_max", "token_lag_mean", "token_lag_max")),
    ("skipped_updates", "Skipped updates", "Updates whose gradient was not finite.", {}, _each("skipped_updates")),
)  # fmt: skip
_ONLY_IF_ANY = {"skipped_updates"}
_TIME: Sequence[_Figure] = (
    ("throughput", "Throughput", "Response tokens trained on, per second of the learner.", {"unit": "tokens/s"},
     {"tokens_per_second": _tokens_per_second}),
    ("age", "Age of a rollout", "From the end of generation to training.", {"unit": "s"}, _each("age_seconds_mean")),
)  # fmt: skip
_DRIFT = (
    ("expert_overlap", "Experts chosen again", "Share of the sampler's experts that the learner chooses too.",
     ("fewest", "most")),
    ("router_shift", "Router shift", "Mean over tokens of the distance between the two routers' log-scores.",
     ("least", "most")),
)  # fmt: skip
_LOAD = (
    ("expert_load_max", "Load of the busiest expert", "Over the mean load: 1 is an even load.", ("even", "uneven")),
    ("expert_load_entropy", "Entropy of the load", "Over that of an even load: 1 is an even load.", ("uneven", "even")),
)
# What is in a record and is no curve of its own.
_NOT_OTHERS = {"step", "tokens", "trajectories"}


def _of_steps(runs: Sequence[RunData], figures: Iterable[_Figure]) -> list[Lines]:
    return [made for figure in figures if (made := _figure(runs, *figure)) is not None]


def _figure(
    runs: Sequence[RunData], id: str, title: str, note: str, options: dict[str, Any], curves: _Curves
) -> Lines | None:
    found = [
        curve(name, run, ((r["step"], value(r)) for r in data.steps), log=options.get("log", False))
        for run, data in enumerate(runs)
        for name, value in curves.items()
    ]
    series = [each for each in found if each is not None]
    if not series or (id in _ONLY_IF_ANY and not any(any(each.y) for each in series)):
        return None
    return Lines(id, title, note, series, **options)


def _accuracies(runs: Sequence[RunData]) -> Iterator[Lines]:
    sets = dict.fromkeys(e["set"] for run in runs for e in run.evaluations)
    for number, held_out in enumerate(sets):
        series: list[Series] = []
        for run, data in enumerate(runs):
            found = by_set(data.evaluations).get(held_out, [])
            series += _accuracy_series(run, found)
        yield Lines(
            f"accuracy_{number}", f"Held-out accuracy: {held_out}",
            "Bars are 95 % Wilson intervals: what other problems of this kind would give.",
            series, bars=True,
        )  # fmt: skip


def _accuracy_series(run: int, found: Sequence[dict[str, Any]]) -> Iterator[Series]:
    if not found:
        return
    notes = [versions_in_words(e) for e in found]
    bands = [accuracy_interval(e) for e in found]
    yield _estimates("sampled (pass@1)", run, found, [e["accuracy"] for e in found], bands, notes)
    greedy = [e for e in found if e["greedy_accuracy"] is not None]
    if greedy:
        shares = [e["greedy_accuracy"] for e in greedy]
        bands = [interval(share, e["problems"]) for share, e in zip(shares, greedy, strict=True)]
        yield _estimates("greedy", run, greedy, shares, bands, [versions_in_words(e) for e in greedy])
    for k in pass_at(found):
        having = [e for e in found if k in e["pass_at_k"]]
        x, y = [e["version"] for e in having], [rounded(e["pass_at_k"][k]) for e in having]
        yield Series(f"pass@{k}", run, x, y, notes=[versions_in_words(e) for e in having])


def _estimates(
    name: str, run: int, found: Sequence[dict[str, Any]], shares: Sequence[float],
    bands: Sequence[tuple[float, float]], notes: Sequence[str],
) -> Series:  # fmt: skip
    low, high = [rounded(a) for a, _ in bands], [rounded(b) for _, b in bands]
    return Series(name, run, [e["version"] for e in found], [rounded(s) for s in shares], low, high, notes)


def pass_at(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    """Every k of a pass@k, for a run that goes on may measure others than before."""
    return list(dict.fromkeys(k for evaluation in evaluations for k in evaluation["pass_at_k"]))


def _heat_maps(
    runs: Sequence[RunData], names: Sequence[str], kinds: Iterable[tuple[str, str, str, tuple[str, str]]]
) -> list[HeatMap]:
    """A map of each kind for each run, all on one scale, so that runs can be compared by eye."""
    shown: list[HeatMap] = []
    for prefix, title, note, ends in kinds:
        found = []
        for run, data in enumerate(runs):
            own = f"{title}: {names[run]}" if len(runs) > 1 else title
            if (made := heat_map(f"{prefix}_{run}", own, note, run, data.steps, prefix, ends=ends)) is not None:
                found.append(made)
        low, high = min((m.bounds[0] for m in found), default=0.0), max((m.bounds[1] for m in found), default=1.0)
        shown += [HeatMap(m.id, m.title, m.note, m.run, m.x, m.y, m.z, (low, high), m.ends) for m in found]
    return shown


def _nested(id: str, title: str, note: str, run: int, data: RunData, key: str, **options: Any) -> Lines | None:
    """The numbers of a table in each record, such as its seconds by phase."""
    inner = dict.fromkeys(name for record in data.steps for name in record.get(key, {}))
    points = {name: [(r["step"], r[key].get(name, 0)) for r in data.steps if key in r] for name in inner}
    series = [made for name, values in points.items() if (made := curve(name, run, values)) is not None]
    return Lines(id, title, note, series, **options) if series else None


def _phases(runs: Sequence[RunData], names: Sequence[str]) -> Iterator[Lines]:
    for run, data in enumerate(runs):
        title = "Seconds of a step" if len(runs) == 1 else f"Seconds of a step: {names[run]}"
        made = _nested(f"seconds_{run}", title, "Time in “wait” is time in which the learner had nothing to train on.",
                       run, data, "seconds", unit="s", stacked=True)  # fmt: skip
        if made is not None:
            yield made


def _queues(runs: Sequence[RunData]) -> Iterator[Lines]:
    found = [_nested("", "", "", run, data, "queue") for run, data in enumerate(runs)]
    series = [each for figure in found if figure is not None for each in figure.series]
    if series:
        yield Lines("queues", "Entries that wait in the streams", "The fullest one stands before the slowest service.",
                    series, unit="entries")  # fmt: skip


def _dropped(runs: Sequence[RunData], names: Sequence[str]) -> list[Lines]:
    found = []
    for run, data in enumerate(runs):
        title = "Dropped so far" if len(runs) == 1 else f"Dropped so far: {names[run]}"
        made = _nested(f"dropped_{run}", title, "Trajectories by reason; “dead” ones are kept as dead letters.",
                       run, data, "dropped", unit="trajectories", stacked=True)  # fmt: skip
        if made is not None:
            found.append(made)
    return found


def _others(runs: Sequence[RunData], shown: set[str]) -> Iterator[Lines]:
    """A figure for each number that no other shows, such as one of an objective of a package."""
    known = shown | _NOT_OTHERS
    names = dict.fromkeys(
        name
        for run in runs
        for record in run.steps
        for name, value in record.items()
        if name not in known and "_layer_" not in name and isinstance(value, int | float)
    )
    for name in names:
        made = _figure(runs, f"other_{name}", name, "", {}, _each(name))
        if made is not None:
            yield made
