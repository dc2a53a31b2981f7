"""A short run with a collector: each prompt has one trace through the four services, under one parent, to its end."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import get_type_hints

import pytest

from shared.tracing.kinds import KINDS
from tests.support.collector import Collector, Found
from tests.support.command import RECIPE, Start, settings

STEPS = 2
GROUPS = 8
SERVICES = {f"routershift-{service}" for service in ("curriculum", "generation", "reward", "learner")}
# In the order in which a group that is trained on passes them.
WAY = ["admit prompt", "generate group", "score group", "wait for step", "train on group", "trained"]


@pytest.mark.timeout(400)
def test_a_prompt_is_followed_from_admission_to_its_step(start: Start, tmp_path: Path) -> None:
    with Collector() as collector:
        flags = settings(
            run__steps=STEPS, run__groups_per_step=GROUPS, run__evaluate_every=0, traces__endpoint=collector.url,
            traces__close_seconds=60,
        )  # fmt: skip
        code, out, err = start("run", str(RECIPE), *flags).finish(300)
        assert code == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == STEPS
    traces: dict[str, list[Found]] = defaultdict(list)
    for span in collector.spans:
        traces[span.trace].append(span)
    assert_known(collector.spans)
    prompts = [spans for spans in traces.values() if any(span.name == "admit prompt" for span in spans)]
    trained = [spans for spans in prompts if any(span.name == "trained" for span in spans)]
    assert len(trained) == STEPS * GROUPS
    steps = {span.attributes["step"]: span for span in collector.named("step")}
    assert sorted(steps) == [1, 2]
    for spans in prompts:
        assert_one_trace(spans)
    for spans in trained:
        assert_whole(spans, steps)
    taken = Counter(span.attributes["step"] for span in collector.named("train on group"))
    assert taken == {1: GROUPS, 2: GROUPS}
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
