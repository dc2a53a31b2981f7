"""The table of router families, against what the routers of transformers themselves compute."""

from pathlib import Path
from typing import Any

import pytest
import torch

from routershift.routing.families import families
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.routers import check_layout, layout_of, log_scores, read, require_layout, reroute, routers_of
from shared.errors import InvalidInputError, PreconditionError
from tests.support.models import EXPERTS, MOE_KINDS, TOP_K, save_model
from tests.support.rollouts import layout, load, routing

SIGMOID, SOFTMAX, SOFTMAX_TOPK = ScoreFunction.SIGMOID, ScoreFunction.SOFTMAX, ScoreFunction.SOFTMAX_TOPK
LAYOUTS = {
    "qwen3_moe": layout(),
    "qwen3_moe_dense_first": layout((1, 2)),
    "qwen2_moe": layout(),
    "mixtral": layout(),
    "olmoe": layout(),
    "deepseek_v3": layout((1, 2), SIGMOID),
    "glm4_moe": layout((1, 2), SIGMOID),
    "glm_moe_dsa": layout((1, 2), SIGMOID),
    "minimax_m2": layout(score_function=SIGMOID),
    "gpt_oss": layout(score_function=SOFTMAX_TOPK),
    "llama4": layout((0, 2), SIGMOID),
}
TOKENS = torch.arange(2, 22)[None]


@pytest.mark.parametrize("kind", MOE_KINDS)
def test_the_layout_of_a_family(tmp_path: Path, kind: str) -> None:
    assert require_layout(load(save_model(tmp_path, kind))) == LAYOUTS[kind]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in MOE_KINDS),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("deepseek_v3", {"norm_topk_prob": False}),
    ],
)
def test_a_router_sent_to_its_own_choice_gives_its_own_output(
    tmp_path: Path, kind: str, changes: dict[str, bool]
) -> None:
    """So the weights in the table are those of the model: normalised or not, scaled, in its own form."""
    model = load(save_model(tmp_path, kind, **changes))
    family = families()[model.config.model_type]
    seen: list[tuple[Any, Any]] = []
    for module in routers_of(model).values():
        module.register_forward_hook(lambda router, _, output: seen.append((router, output)))
    with torch.no_grad(), routing(model) as passes:
        model(TOKENS)
    for layer, (router, output) in enumerate(seen):
        logits, expert_ids = read(family, router, output)
        assert torch.equal(logits, passes[0].logits[:, layer])
        assert torch.equal(expert_ids.sort().values, passes[0].expert_ids[:, layer].sort().values)
        for rerouted, original in zip(reroute(family, router, output, expert_ids), output, strict=True):
            torch.testing.assert_close(rerouted, original, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe", "glm_moe_dsa", "minimax_m2"])
def test_a_correction_bias_selects_and_does_not_score(tmp_path: Path, kind: str) -> None:
    """The tiny model must be able to tell the difference."""
    model = load(save_model(tmp_path, kind))
    with torch.no_grad(), routing(model) as passes:
        model(TOKENS)
    highest = passes[0].logits.topk(TOP_K).indices.sort().values
    assert not torch.equal(highest, passes[0].expert_ids.sort().values)


def test_scores_of_given_experts() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    expert_ids = torch.tensor([[3, 1]])
    expected = {
        SOFTMAX: logits.softmax(-1)[:, [3, 1]],
        SIGMOID: logits.sigmoid()[:, [3, 1]],
        SOFTMAX_TOPK: torch.tensor([[-1.0, 1.0]]).softmax(-1),
    }
    for function, scores in expected.items():
        torch.testing.assert_close(log_scores(function, logits, expert_ids).exp(), scores)
        assert log_scores(function, logits.bfloat16(), expert_ids).dtype is torch.float32


def test_a_model_without_known_routers_is_refused_with_the_list(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, "qwen3_dense"))
    assert layout_of(model) is None
    with pytest.raises(PreconditionError, match=r"'qwen3' is dense or unknown.*deepseek_v3, glm4_moe.*qwen3_moe"):
        require_layout(model)


def test_a_known_family_without_a_routed_layer_is_dense(tmp_path: Path) -> None:
    assert layout_of(load(save_model(tmp_path, mlp_only_layers=[0, 1, 2]))) is None


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (RouterLayout((1, 2), EXPERTS, TOP_K, SOFTMAX), "layer_ids"),
        (RouterLayout((0, 1, 2), 16, TOP_K, SOFTMAX), "num_experts"),
        (RouterLayout((0, 1, 2), EXPERTS, 4, SOFTMAX), "top_k"),
        (RouterLayout((0, 1, 2), EXPERTS, TOP_K, SIGMOID), "score_function"),
    ],
)
def test_a_trace_of_another_model_is_refused(other: RouterLayout, named: str) -> None:
    check_layout(layout(), layout())
    with pytest.raises(InvalidInputError, match=f"layout: {named} is"):
        check_layout(other, layout())
