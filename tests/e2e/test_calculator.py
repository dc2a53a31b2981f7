"""A run whose responses are episodes: several turns of the model each, with a calculator in between."""

import json
from pathlib import Path

from services.learner.checkpointing.checkpoint import trained_groups
from shared.tracking import records
from shared.tracking.sample import TRAINED
from shared.tracking.samples import Samples
from tests.support.command import RECIPE, Start, settings

STEPS, GROUPS, SAMPLES = 3, 8, 8


def test_episodes_of_several_turns_are_trained_on_to_an_exact_account(start: Start, tmp_path: Path) -> None:
    recipe = RECIPE.parent / "calculator.toml"
    flags = settings(
        run__steps=STEPS,
        environments__port=0,
        environments__metrics_port=0,
        curriculum__evaluation__problems=64,  # at first the model asks at one problem in six
        curriculum__evaluation__sampling__n=2,
        learner__samples__groups=GROUPS,
    )
    code, out, err = start("run", str(recipe), *flags).finish(timeout=240)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["task"] == "calculator"
    assert summary["trajectories_trained"] == STEPS * GROUPS * SAMPLES
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished", "stale"}
    assert min(summary["turns_before"], summary["turns_after"]) > 1

    folder = tmp_path / "runs/test"
    evaluations = records.read(folder / records.EVALUATIONS)
    assert [(e["set"], e["version"]) for e in evaluations] == [("calculator", 0), ("calculator", STEPS)]
    assert all(e["mean_turns"] > 1 for e in evaluations)
    assert len(trained_groups(folder / "checkpoints")) == STEPS * GROUPS
    samples = Samples(folder)
    kept = [samples.read(s.step, s.trajectory) for s in samples.summaries() if s.outcome == TRAINED]
    played = [sample for sample in kept if len(sample.segments) > 1]
    assert played
    for sample in played:
        assert [segment.is_sampled for segment in sample.segments] == [i % 2 == 0 for i in range(len(sample.segments))]
        assert all(segment.text.endswith("?") for segment in sample.segments[:-1:2])
        assert all(segment.text.endswith(";") for segment in sample.segments[1::2])
