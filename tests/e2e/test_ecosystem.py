"""Environments of other packages are trained for a few steps, from the recipes and scripts of the page about them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.tracking import records
from shared.tracking.sample import TRAINED, Sample
from shared.tracking.samples import Samples
from shared.weights import published
from tests.support import ecosystem
from tests.support.command import Start, settings
from tests.support.data import write_jsonl
from tests.support.gateway import save_agent_model

pytestmark = ecosystem.MARKS

STEPS, GROUPS, SAMPLES = 3, 2, 4
# What a program sees that installs packages, and how what is left of it is found.
_VARIABLES = "TEST_MARK,SSL_CERT_FILE,HTTPS_PROXY,NO_PROXY,UV_DEFAULT_INDEX,UV_FIND_LINKS,XDG_CACHE_HOME"


def train(start: Start, folder: Path, recipe: str, **changes: object) -> list[Sample]:
    """Trains to an exact account; gives what was trained on."""
    name = recipe.removesuffix(".toml")
    flags = settings(
        run__steps=STEPS,
        run__groups_per_step=GROUPS,
        run__max_staleness=0,
        rollout__n=SAMPLES,
        data__held_out_share=0.02,
        environments__port=0,
        environments__metrics_port=0,
        environments__turn_seconds=ecosystem.SECONDS,
        environments__episode_seconds=2 * ecosystem.SECONDS,
        learner__samples__groups=GROUPS,
        **{f"environments__named__{name}__variables": _VARIABLES},
        **changes,
    )
    run = start("run", recipe, *flags)
    code, out, err = run.finish(timeout=1500)
    if "failed to prepare uv script" in err:
        pytest.skip("verifiers cannot install its program here")
    assert code == 0, err
    assert run.nothing_left(), run.alive()
    summary = json.loads(out.splitlines()[-1])
    print(f"{name}: {summary}")
    assert summary["steps"] == STEPS
    assert summary["trajectories_trained"] == STEPS * GROUPS * SAMPLES
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished"}
    code, out, err = start("audit", "test").finish(timeout=60)
    assert code == 0, (out, err)

    run_folder = folder / "runs/test"
    assert [record["step"] for record in records.read(run_folder / records.LEARNER)] == list(range(1, STEPS + 1))
    before = load_file(folder / "model/model.safetensors")
    after = load_file(run_folder / "weights" / published.folder_name(STEPS) / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    samples = Samples(run_folder)
    kept = [samples.read(s.step, s.trajectory) for s in samples.summaries() if s.outcome == TRAINED]
    assert any(len(sample.segments) >= 3 for sample in kept), "no episode has two turns"
    assert len({sample.reward for sample in kept}) > 1
    return kept


def test_an_environment_of_verifiers_is_trained(start: Start, tmp_path: Path) -> None:
    python = ecosystem.verifiers()
    ecosystem.write_page(tmp_path)
    recipe = tmp_path / "guess.toml"
    recipe.write_text(recipe.read_text().replace("/home/me/verifiers-env/bin/python", str(python)))
    guesses = [f"[{number}]" for number in range(4, 19, 2)]  # as few, so that it mostly ends its turn after one or two
    save_agent_model(tmp_path / "model", says=guesses, max_position_embeddings=2048)
    write_jsonl(tmp_path / "games.jsonl", [{"task": task} for task in range(100)])
    kept = train(start, tmp_path, recipe.name, rollout__max_tokens=96, environments__named__guess__processes=2)
    assert all(sample.parts.keys() == {"game_reward", "correct"} for sample in kept)
    assert any("The target number is" in segment.text for sample in kept for segment in sample.segments)


def test_an_environment_of_openenv_is_trained(start: Start, tmp_path: Path) -> None:
    python = ecosystem.openenv()
    ecosystem.write_page(tmp_path)
    save_agent_model(tmp_path / "model", says="abc ", max_position_embeddings=2048)
    write_jsonl(tmp_path / "seeds.jsonl", [{"seed": seed} for seed in range(100)])
    with ecosystem.echo_server(python, tmp_path) as url:
        recipe = tmp_path / "echo.toml"
        text = recipe.read_text().replace("/home/me/openenv-env/bin/python", str(python))
        recipe.write_text(text.replace("http://127.0.0.1:8020", url))
        kept = train(start, tmp_path, recipe.name, rollout__max_tokens=64)
    assert any("echoed_message" in segment.text for sample in kept for segment in sample.segments)
