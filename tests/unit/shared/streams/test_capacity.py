"""Whether a step fits into a stream: the arithmetic of recipes, and of what generation really sends."""

from pathlib import Path

import numpy as np
import pytest

from routershift import wire
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, RouterExport, RouterTrace, ScoreDtype, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from services.cli.recipe import Recipe
from shared.errors import InvalidInputError
from shared.recipes import load
from shared.settings import RolloutSettings, RunSettings, StreamSettings
from shared.streams.capacity import check_step_fits, trajectory_bytes


def layout(layers: int, experts: int, top_k: int) -> RouterLayout:
    return RouterLayout(tuple(range(layers)), experts, top_k, ScoreFunction.SOFTMAX)


OLMOE, QWEN3_30B, GPT_OSS_20B, DEMO = layout(16, 64, 8), layout(48, 128, 8), layout(24, 32, 4), layout(3, 16, 2)
RECIPES: dict[str, RouterLayout | None] = {
    "recipes/arithmetic.toml": layout(30, 4, 2),
    "recipes/gpt-oss-20b-code.toml": GPT_OSS_20B,
    "recipes/gsm8k.toml": OLMOE,
    "recipes/olmoe-1b-7b-math.toml": OLMOE,
    "recipes/qwen3-30b-a3b-code.toml": QWEN3_30B,
    "recipes/qwen3-30b-a3b-math.toml": QWEN3_30B,
    "recipes/qwen3-4b-math.toml": None,
    "recipes/countdown.toml": DEMO,
    "recipes/countdown-long.toml": DEMO,
    "recipes/calculator.toml": layout(3, 8, 2),
    "recipes/maze.toml": layout(3, 8, 2),
    "recipes/python.toml": layout(3, 8, 2),
    "k8s/overlays/dev/recipe.toml": DEMO,
    "k8s/overlays/gpu/recipe.toml": OLMOE,
    "k8s/overlays/multinode/recipe.toml": QWEN3_30B,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_room_for_all_its_tickets_at_full_length(recipe: str, repository: Path) -> None:
    tables = load(Recipe, repository / "deploy" / recipe, {})
    run, generation = tables.run, tables.generation
    longest = trajectory_bytes(
        run,
        tables.rollout,
        RECIPES[recipe],
        generation.router_export,
        generation.router_scores,
        generation.router_layers,
    )
    check_step_fits(run, tables.rollout, tables.streams, longest)
    assert run.tickets * tables.rollout.n * longest <= tables.streams.max_bytes


def test_no_recipe_is_left_out(repository: Path) -> None:
    deploy = repository / "deploy"
    found = {*deploy.glob("k8s/overlays/*/recipe.toml"), *deploy.glob("recipes/*.toml")}
    assert {str(path.relative_to(deploy)) for path in found} == RECIPES.keys()


@pytest.mark.parametrize("scores", ScoreDtype)
@pytest.mark.parametrize("export", RouterExport)
def test_it_is_what_such_a_response_takes(export: RouterExport, scores: ScoreDtype) -> None:
    run, rollout, tokens, random = (
        RunSettings(model=Path()),
        RolloutSettings(max_tokens=37),
        37,
        np.random.default_rng(0),
    )
    shape = (tokens, 3, 2)
    trace = RouterTrace(
        DEMO,
        random.integers(0, 16, shape, np.uint8),
        None if export is RouterExport.IDS else -random.random(shape).astype(np.float16),
        random.random((tokens, 3, 16)).astype(np.float16) if export is RouterExport.FULL else None,
    )
    if scores is ScoreDtype.UINT8:
        trace = trace.coded()
    completion = Completion(
        3, random.integers(0, 99, tokens, np.int32), -random.random(tokens, np.float32), (VersionSpan(7, tokens),),
        FinishReason.LENGTH, None if export is RouterExport.NONE else trace, "word" * tokens,
    )  # fmt: skip
    sent = pb.Trajectory(completion=wire.encode_completion(completion)).ByteSize()
    assert sent <= trajectory_bytes(run, rollout, DEMO, export, scores) <= sent + 256


def test_a_step_that_cannot_fit_is_refused_with_its_numbers() -> None:
    run = RunSettings(model=Path(), groups_per_step=32, max_staleness=2)
    rollout = RolloutSettings(n=8, max_tokens=16)
    check_step_fits(run, rollout, StreamSettings(max_bytes=256_000), 1000)
    with pytest.raises(InvalidInputError) as caught:
        check_step_fits(run, rollout, StreamSettings(max_bytes=255_999), 1000)
    for part in (
        "streams.max_bytes is 255999",
        "groups_per_step 32 x rollout.n 8 x 1000",
        "256000",
        "96",
        "768000",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
