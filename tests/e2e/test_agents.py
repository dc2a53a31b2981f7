"""A run whose episodes are played by agents that know nothing but the OpenAI API: those of the page about them."""

import ast
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from services.learner.checkpointing.checkpoint import trained_groups
from shared.tracking import records
from shared.tracking.sample import TRAINED
from shared.tracking.samples import Samples
from shared.weights import published
from tests.support.agents import install_agent
from tests.support.command import Start, settings

STEPS, GROUPS, SAMPLES = 2, 2, 4


def test_an_agent_that_imports_only_openai_trains_to_an_exact_account(start: Start, tmp_path: Path) -> None:
    page = install_agent(tmp_path)
    assert not modules(tmp_path / "agent.py") - sys.stdlib_module_names - {"openai"}
    flags = settings(
        run__steps=STEPS,
        run__groups_per_step=GROUPS,
        rollout__n=SAMPLES,
        rollout__max_tokens=96,
        environments__port=0,
        environments__metrics_port=0,
        environments__named__helper__processes=2,
        # So that what is left of agents is found: see `Invocation.nothing_left`.
        environments__named__helper__variables="TEST_MARK",
        data__held_out_share=0.02,
        learner__samples__groups=GROUPS,
    )
    run = start("run", "recipe.toml", *flags, environment={"PATH": page["PATH"]})
    code, out, err = run.finish(timeout=240)
    assert code == 0, err
    assert run.nothing_left(), run.alive()

    summary = json.loads(out.splitlines()[-1])
    assert summary["steps"] == STEPS
    assert summary["trajectories_trained"] == STEPS * GROUPS * SAMPLES
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished", "stale"}
    assert min(summary["turns_before"], summary["turns_after"]) >= 2
    folder = tmp_path / "runs/test"
    assert [each["version"] for each in records.read(folder / records.EVALUATIONS)] == [0, STEPS]
    assert len(trained_groups(folder / "checkpoints")) == STEPS * GROUPS
    code, out, err = start("audit", "test").finish(timeout=60)
    assert code == 0, (out, err)

    before = load_file(tmp_path / "model/model.safetensors")
    after = load_file(folder / "weights" / published.folder_name(STEPS) / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)

    samples = Samples(folder)
    kept = [samples.read(s.step, s.trajectory) for s in samples.summaries() if s.outcome == TRAINED]
    assert kept
    for sample in kept:
        segments = sample.segments
        assert len(segments) >= 3, "two turns, and what was said between them"
        assert [segment.is_sampled for segment in segments] == [i % 2 == 0 for i in range(len(segments))]
        assert "Are you sure?" in segments[1].text
        assert sample.reward in (0.0, 1.0)


def modules(script: Path) -> set[str]:
    """Packages that a script imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found
