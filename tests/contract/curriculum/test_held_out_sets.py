"""Several held-out sets behind real servers, each evaluated in its own way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import REGISTRY

from services.curriculum.held_out import EvaluationSampling
from services.curriculum.problems import HeldOutSet, Problem
from shared.streams.run import FINISHED, Run
from shared.tracking import records
from tests.support.curriculum import EVERY, PROBLEMS, SAMPLES, TASK, HandWritten, training


@dataclass(frozen=True)
class TwoSets:
    """The held-out problems of the task in two sets, the second of which is evaluated half as often."""

    main: HeldOutSet
    other: HeldOutSet

    def train(self, index: int) -> Problem:
        raise NotImplementedError

    def held_out(self) -> Sequence[HeldOutSet]:
        return [self.main, self.other]


def two_sets() -> TwoSets:
    problems = [Problem(p.prompt, p.reference, TASK.verifier) for p in PROBLEMS]
    sampling = EvaluationSampling(n=1, temperature=0.0, max_tokens=7)
    return TwoSets(
        HeldOutSet("easy", problems[:4], EvaluationSampling(n=SAMPLES, temperature=0.5, greedy=False), (1, 4), EVERY),
        HeldOutSet("hard", problems[4:], sampling, (), 2 * EVERY),
    )


async def test_each_set_is_sampled_in_its_own_way_and_the_first_decides_which_version_is_the_best(
    run: Run, tmp_path: Path
) -> None:
    """The easy set gets worse from version 0 to 20, the hard one better."""
    engine = HandWritten(
        right=lambda version, index: {0: 3, 10: 1, 20: 0, 25: 1}[version], greedy=lambda version, index: version == 20
    )
    async with training(engine, run, tmp_path, two_sets()) as all_of_it:
        asked = {(a.n, a.temperature, a.max_tokens) for a in engine.asked}
        assert asked == {(SAMPLES, 0.5, 12), (1, 0.0, 7)}
        assert len(engine.asked) == len(PROBLEMS)  # no set asks for what it does not measure
        for version in (10, 20):
            await all_of_it.publish(version)
            await all_of_it.until("evaluated_version", version)
        await all_of_it.publish(25, FINISHED)
        await all_of_it.until("final_evaluation", 25)
        found = records.read(all_of_it.settings.run.path / records.EVALUATIONS)
    assert [(r["set"], r["main"], r["version"], r["accuracy"], r["greedy_accuracy"], r["problems"]) for r in found] == [
        ("easy", True, 0, 0.75, None, 4),
        ("hard", False, 0, 0.0, None, 2),
        ("easy", True, 10, 0.25, None, 4),
        ("easy", True, 20, 0.0, None, 4),
        ("hard", False, 20, 1.0, None, 2),
        ("easy", True, 25, 0.25, None, 4),
        ("hard", False, 25, 0.0, None, 2),
    ]
    assert [set(r["pass_at_k"]) for r in found[:2]] == [{"1", "4"}, set()]
    progress = await run.progress()
    assert (progress.best_version, progress.best_accuracy, progress.accuracy) == (0, 0.75, 0.25)
    assert progress.held_out == {
        "easy": {"version": 25, "accuracy": 0.25, "greedy_accuracy": None},
        "hard": {"version": 25, "accuracy": 0.0, "greedy_accuracy": None},
    }
    labels = {"set": "easy", "decoding": "sampled"}
    assert REGISTRY.get_sample_value("routershift_curriculum_held_out_accuracy", labels) == 0.25


async def test_a_set_whose_turn_was_passed_over_has_it_at_the_next_evaluation(run: Run, tmp_path: Path) -> None:
    engine = HandWritten(right=lambda version, index: 1)
    async with training(engine, run, tmp_path, two_sets()) as all_of_it:
        await all_of_it.publish(10)
        await all_of_it.until("evaluated_version", 10)
        await all_of_it.publish(30)  # the hard set was due at 20
        await all_of_it.until("evaluated_version", 30)
        found = records.read(all_of_it.settings.run.path / records.EVALUATIONS)
    assert [(r["set"], r["version"]) for r in found[2:]] == [("easy", 10), ("easy", 30), ("hard", 30)]
