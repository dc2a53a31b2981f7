"""One short run through all processes with each engine, what is left of it, and where each of its prompts has been."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from shared.streams.keys import Stream
from shared.tracing.kinds import KINDS
from shared.tracking import records
from shared.weights import published
from tests.support.collector import Collector, Found
from tests.support.command import RECIPE, settings, starting

SUMMARY = {
    "task", "engine", "algorithm", "steps", "accuracy_before", "accuracy_after", "trajectories_trained",
    "trajectories_dropped", "max_staleness_seen", "rollouts_per_second", "seconds",
}  # fmt: skip
STEPS = 4
GROUPS = 8
SAMPLES = 8
SERVICES = {f"routershift-{service}" for service in ("curriculum", "generation", "reward", "learner")}
# In the order in which a group that is trained on passes them.
WAY = ["admit prompt", "generate group", "score group", "wait for step", "train on group", "trained"]


@dataclass(frozen=True)
class Finished:
    """A run that has come to its end, and what a collector of traces was told of it."""

    engine: str
    place: Path  # where the command was given
    summary: dict[str, Any]  # as it was printed
    left: list[str]  # command lines of processes that outlived it
    collector: Collector


@pytest.fixture(scope="module", params=["torch", pytest.param("vllm", marks=pytest.mark.vllm)])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    engine, place = request.param, tmp_path_factory.mktemp("run")
    with Collector() as collector, starting(place) as start:
        flags = settings(
            run__steps=STEPS, run__groups_per_step=GROUPS, generation__engine=engine, traces__endpoint=collector.url,
            traces__close_seconds=60,
        )  # fmt: skip
        invocation = start("run", str(RECIPE), *flags)
        code, out, err = invocation.finish(timeout=240)
        assert code == 0, err
        left = [] if invocation.nothing_left() else invocation.alive()
        yield Finished(engine, place, json.loads(out.splitlines()[-1]), left, collector)


def test_a_run_goes_through_every_service_to_the_end(finished: Finished) -> None:
    summary, engine = finished.summary, finished.engine
    assert not finished.left
    assert summary.keys() == SUMMARY
    assert (summary["task"], summary["engine"], summary["algorithm"]) == ("countdown", engine, "rspo")
    assert summary["steps"] == STEPS
    assert summary["trajectories_trained"] == STEPS * GROUPS * SAMPLES
    assert 0 <= summary["max_staleness_seen"] <= 2
    assert 0 < summary["accuracy_before"] < 1
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished", "stale"}

    folder = finished.place / "runs/test"
    steps = records.read(folder / records.LEARNER)
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert all(0 < record["gamma_mean"] <= 1 for record in steps)
    assert all(set(record["queue"]) == set(Stream) for record in steps)
    # Behaviour log-probs and router scores came from the very weights of step 1: nothing has drifted yet.
    assert steps[0]["gamma_at_lag_zero"] > 0.999
    evaluations = records.read(folder / records.EVALUATIONS)
    assert (evaluations[0]["version"], evaluations[-1]["version"]) == (0, STEPS)
    for name in ("report.html", "summary.json"):
        assert (folder / name).stat().st_size > 100
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert best["version"] in (0, STEPS)
    if best["version"]:
        assert (finished.place / best["checkpoint"]).is_dir()
        assert (finished.place / best["weights"]).is_dir()
    versions = sorted(path.name for path in (folder / "weights").iterdir())
    assert versions[-1] == f"v{STEPS:08d}"
    assert (folder / "weights" / versions[-1] / published.MANIFEST).is_file()
    for service in ("curriculum", "generation", "reward", "learner"):
        lines = (folder / "logs" / f"{service}.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["service"] == service


def test_a_prompt_is_followed_from_admission_to_its_step(finished: Finished) -> None:
    """Each has one trace through the four services, under one parent, to its end."""
    collector = finished.collector
    traces: dict[str, list[Found]] = defaultdict(list)
    for span in collector.spans:
        traces[span.trace].append(span)
    assert_known(collector.spans)
    prompts = [spans for spans in traces.values() if any(span.name == "admit prompt" for span in spans)]
    trained = [spans for spans in prompts if any(span.name == "trained" for span in spans)]
    assert len(trained) == STEPS * GROUPS
    steps = {span.attributes["step"]: span for span in collector.named("step")}
    assert sorted(steps) == list(range(1, STEPS + 1))
    for spans in prompts:
        assert_one_trace(spans)
    for spans in trained:
        assert_whole(spans, steps)
    taken = Counter(span.attributes["step"] for span in collector.named("train on group"))
    assert taken == dict.fromkeys(steps, GROUPS)
    assert all(steps[number].attributes["groups"] == GROUPS for number in steps)
    for step in steps.values():
        inner = {span.name for span in traces[step.trace] if span.parent == step.id}
        assert inner >= {"collate", "publish weights"}
    dropped = [span for span in collector.spans if span.name == "dropped"]
    assert {span.attributes["reason"] for span in dropped} <= {"zero_variance", "stale", "run_finished"}
    assert all(span.failed == span.attributes["reason"] for span in dropped)
    calls = [span for span in collector.spans if span.name == "serve call"]
    answered = {span.id: span for span in collector.named("evaluate problem")}
    assert {span.service for span in calls} == {"routershift-generation", "routershift-reward"}
    assert all(answered[span.parent].trace == span.trace for span in calls)


def assert_known(spans: list[Found]) -> None:
    """Names and attributes are those of the page on traces; all are of this run."""
    known = {kind.name: set(get_type_hints(kind.attributes)) for kind in KINDS}
    assert {span.run for span in spans} == {"test"}
    assert {span.name: set(span.attributes) - known[span.name] for span in spans} == {
        span.name: set() for span in spans
    }
    assert {span.service for span in spans} == SERVICES


def assert_one_trace(spans: list[Found]) -> None:
    """One first span, whose children all others are, and at most one end."""
    (first,) = [span for span in spans if not span.parent]
    assert first.name == "admit prompt"
    assert {span.parent for span in spans if span is not first} <= {first.id}
    groups = {span.attributes["group"] for span in spans if "group" in span.attributes}
    assert len(groups) == 1
    assert sum(span.name in ("trained", "dropped", "dead") for span in spans) <= 1


def assert_whole(spans: list[Found], steps: dict[int, Found]) -> None:
    """All of the way is there, in its order, from four services."""
    by_name = {span.name: span for span in spans}
    assert {span.service for span in spans} == SERVICES
    assert sorted(WAY, key=lambda name: by_name[name].began) == WAY
    waits = {span.attributes["stream"]: span.service for span in spans if span.name == "wait in stream"}
    assert waits == {
        "prompts": "routershift-generation", "rollouts": "routershift-reward", "scored": "routershift-learner",
    }  # fmt: skip
    generate, score, train = (by_name[name] for name in ("generate group", "score group", "train on group"))
    assert generate.attributes["response_tokens"] == train.attributes["tokens"] > 0
    assert generate.attributes["longest_tokens"] <= generate.attributes["response_tokens"]
    assert generate.attributes["oldest_version"] == train.attributes["step"] - 1 - train.attributes["staleness"]
    assert generate.attributes["samples"] == score.attributes["samples"] == train.attributes["samples"]
    assert (score.attributes["verifier"], score.attributes["attempts"]) == ("countdown", 1)
    assert 0 < score.attributes["slowest_seconds"] <= score.attributes["seconds"]
    step = steps[train.attributes["step"]]
    assert train.links == [(step.trace, step.id)]
    assert step.began <= train.began <= train.ended <= step.ended
