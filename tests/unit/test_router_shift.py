"""Router shift against a brute-force computation from full router logits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from services.learner.batch import Batch, Group, Weighted, collate
from services.learner.objectives import Clipping, PolicyBatch, gmpo
from services.learner.router_shift import RouterShift, Shift, clip_log_gamma, require_layout
from services.learner.settings import LayerAggregation
from shared.errors import InvalidInputError, PreconditionError
from shared.routers import check_layout, layout_of, routers_of
from shared.trajectory import MISSING_LOG_SCORE, RouterLayout, ScoreFunction
from tests.models import EXPERTS, TOP_K, save_model
from tests.rollouts import layout, load, perturbed, random_groups

FAMILIES = {
    "qwen3_moe": (0, 1, 2),
    "qwen3_moe_dense_first": (1, 2),
    "qwen2_moe": (0, 1, 2),
    "mixtral": (0, 1, 2),
    "olmoe": (0, 1, 2),
}
SCALE = 0.02  # moves the routers enough that some tokens fall below gamma_min and some top-k sets change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path)


def collated(groups: list[Group]) -> Batch:
    samples = [Weighted(sample, 1.0) for group in groups for sample in group.samples]
    return collate(samples, with_routes=True, device=torch.device("cpu"))


def run(model: PreTrainedModel, batch: Batch, aggregation: LayerAggregation = "mean") -> Shift:
    shift = RouterShift(routers_of(model), aggregation)
    assert batch.routes is not None
    with shift.recording(batch.routes) as recording:
        model(input_ids=batch.input_ids, use_cache=False)
    return recording.result()


@torch.no_grad()
def brute_force(model: PreTrainedModel, groups: list[Group], aggregation: LayerAggregation) -> tuple[list[float], int]:
    """log gamma of every response token, one sequence and one token at a time; and how many top-k sets changed."""
    log_gamma, changed = [], 0
    for sample in (sample for group in groups for sample in group.samples):
        trace = sample.completion.router_trace
        assert trace is not None
        ids = torch.tensor(np.concatenate((sample.prompt_ids, sample.completion.token_ids)))[None]
        layers = [logits.double() for logits in model(ids, output_router_logits=True).router_logits]
        for t in range(sample.completion.token_ids.size):
            row = sample.prompt_ids.size - 1 + t
            factors = []
            for layer, logits in enumerate(layers):
                probabilities = torch.softmax(logits[row], dim=-1)
                recorded = trace.expert_ids[t, layer].tolist()
                changed += set(probabilities.topk(TOP_K).indices.tolist()) != set(recorded)
                distances = [
                    abs(math.log(probabilities[e]) - float(old))
                    for e, old in zip(recorded, trace.log_scores[t, layer], strict=True)
                ]
                if aggregation == "mean":
                    factors.append(math.exp(-sum(distances) / len(distances)))
                else:
                    factors.append(sum(math.exp(-d) for d in distances) / len(distances))
            product = sum(math.log(factor) for factor in factors)
            log_gamma.append(product / len(factors) if aggregation == "mean" else product)
    return log_gamma, changed


@pytest.mark.parametrize("aggregation", ["mean", "product"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_gamma_equals_the_definition_from_full_logits(tmp_path: Path, kind: str, aggregation: LayerAggregation) -> None:
    folder = save_model(tmp_path, kind)
    groups = random_groups(load(folder), groups=4, samples=4, layer_ids=FAMILIES[kind])
    live = perturbed(load(folder), SCALE)
    expected, changed = brute_force(live, groups, aggregation)
    shift = run(live, collated(groups), aggregation)
    assert changed > 0
    assert min(expected) < math.log(0.8)
    np.testing.assert_allclose(shift.log_gamma.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert not shift.log_gamma.requires_grad


def test_gamma_is_one_on_the_weights_that_sampled(folder: Path) -> None:
    """Up to the float16 of the recorded scores."""
    model = load(folder)
    shift = run(model, collated(random_groups(model, groups=4, samples=4)))
    assert shift.log_gamma.abs().max() < 2e-3


def test_the_shift_of_each_layer_is_reported(folder: Path) -> None:
    """Only the last router moves, so only the last layer shifts."""
    model = load(folder)
    batch = collated(random_groups(model, groups=4, samples=4))
    with torch.no_grad():
        routers_of(model)[2].get_parameter("weight").mul_(1.5)
    shift = run(model, batch)
    tokens = int(batch.mask.sum())
    assert shift.layers[:2].max() / tokens < 1e-3
    assert shift.layers[2] / tokens > 0.01
    torch.testing.assert_close(-shift.log_gamma.sum(), shift.layers.sum() / 3, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_activation_checkpointing_counts_no_layer_twice(folder: Path, backward_inside: bool) -> None:
    groups = random_groups(load(folder), groups=4, samples=4)
    expected = run(perturbed(load(folder), SCALE), collated(groups))
    model = perturbed(load(folder), SCALE).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    routers_of(model)[1].register_forward_hook(lambda *_: calls.append(1))
    shift = RouterShift(routers_of(model), "mean")
    batch = collated(groups)
    assert batch.routes is not None
    with shift.recording(batch.routes) as recording:
        loss = model(input_ids=batch.input_ids, use_cache=False).logits.sum()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    assert len(calls) == 2  # the layer really ran again
    torch.testing.assert_close(recording.result().log_gamma, expected.log_gamma)
    torch.testing.assert_close(recording.result().layers, expected.layers)


def test_no_gradient_flows_through_gamma(folder: Path) -> None:
    """The gradient is that of a constant gamma, and another one would be seen: a live gamma has a gradient here."""
    groups = random_groups(load(folder), groups=4, samples=4)
    batch = collated(groups)
    assert batch.routes is not None
    routes = batch.routes

    def router_gradient(log_gamma_of: str) -> torch.Tensor:
        model = perturbed(load(folder), SCALE)
        router = routers_of(model)[2]
        seen: list[torch.Tensor] = []
        router.register_forward_hook(lambda _, __, output: seen.append(output[0]))
        with RouterShift(routers_of(model), "mean").recording(routes) as recording:
            logits = model(input_ids=batch.input_ids, use_cache=False).logits
        log_gamma = recording.result().log_gamma
        if log_gamma_of == "constant":
            log_gamma = torch.tensor(log_gamma.tolist())
        elif log_gamma_of == "live":
            scores = seen[0].log_softmax(-1)[routes.rows].gather(1, routes.expert_ids[:, 2].long())
            live = -(scores - routes.log_scores[:, 2].float()).abs().mean(1) / 3
            log_gamma = log_gamma + live - live.detach()
        every = logits.log_softmax(-1)[torch.arange(len(batch.mask))[:, None], batch.positions]
        policy = PolicyBatch(
            logprobs=every.gather(2, batch.targets[..., None])[..., 0],
            behaviour_logprobs=batch.behaviour_logprobs,
            advantages=batch.advantages,
            mask=batch.mask,
            log_gamma=torch.zeros(batch.mask.shape).masked_scatter(batch.mask, log_gamma),
        )
        gmpo(policy, Clipping(4.0, 4.0, "before_clip")).loss.mean().backward()  # type: ignore[no-untyped-call]
        gradient = router.get_parameter("weight").grad
        assert gradient is not None
        return gradient

    torch.testing.assert_close(router_gradient("recorded"), router_gradient("constant"), rtol=0, atol=0)
    assert (router_gradient("recorded") - router_gradient("live")).abs().max() > 1e-4


def test_a_token_with_a_missing_route_takes_gamma_one(folder: Path) -> None:
    groups = random_groups(load(folder), groups=2, samples=3)
    live = perturbed(load(folder), SCALE)
    whole = run(live, collated(groups))
    trace = groups[0].samples[0].completion.router_trace
    assert trace is not None
    trace.log_scores[0, 1] = MISSING_LOG_SCORE  # one layer of the first token
    batch = collated(groups)
    shift = run(live, batch)
    assert batch.routes is not None
    assert batch.routes.missing.nonzero().tolist() == [[0]]
    assert whole.log_gamma[0] < -1e-3
    assert shift.log_gamma[0] == 0
    assert torch.equal(shift.log_gamma[1:], whole.log_gamma[1:])
    assert (shift.layers < whole.layers).all()


def test_a_route_of_one_layer_is_not_mistaken_for_missing(folder: Path) -> None:
    """Only the sentinel in all K scores marks a missing route; a certain expert has log-score 0."""
    groups = random_groups(load(folder), groups=1, samples=1)
    trace = groups[0].samples[0].completion.router_trace
    assert trace is not None
    trace.log_scores[0, 1, 0] = 0.0
    batch = collated(groups)
    assert batch.routes is not None
    assert not batch.routes.missing.any()


def test_gamma_has_a_floor() -> None:
    log_gamma = torch.tensor([0.0, -0.1, math.log(0.8), -5.0])
    expected = torch.tensor([1.0, math.exp(-0.1), 0.8, 0.8])
    torch.testing.assert_close(clip_log_gamma(log_gamma, 0.8).exp(), expected)


def test_nothing_is_recorded_outside_of_a_recording(folder: Path) -> None:
    model = load(folder)
    batch = collated(random_groups(model, groups=2, samples=2))
    shift = RouterShift(routers_of(model), "mean")
    assert batch.routes is not None
    with shift.recording(batch.routes) as recording:
        pass
    model(input_ids=batch.input_ids)
    assert not recording.result().layers.any()


def test_what_is_kept_does_not_grow_with_the_number_of_experts(tmp_path: Path) -> None:
    """One float a token and one a layer; no [tokens, layers, experts]."""
    model = load(save_model(tmp_path, num_experts=32))
    batch = collated(random_groups(model, groups=2, samples=2))
    assert batch.routes is not None
    routes = batch.routes
    with RouterShift(routers_of(model), "mean").recording(routes) as recording:
        model(input_ids=batch.input_ids)
    kept = [value.numel() for value in vars(recording).values() if isinstance(value, torch.Tensor)]
    assert sum(kept) == routes.rows.numel() + 3


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_layout_of_a_family(tmp_path: Path, kind: str) -> None:
    assert layout_of(load(save_model(tmp_path, kind))) == layout(FAMILIES[kind])


def test_router_shift_refuses_a_model_without_known_routers(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, "qwen3_dense"))
    assert layout_of(model) is None
    with pytest.raises(PreconditionError, match=r"'qwen3' is dense or unknown.*mixtral, olmoe, qwen2_moe, qwen3_moe"):
        require_layout(model)


def test_a_known_family_without_a_routed_layer_is_dense(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, mlp_only_layers=[0, 1, 2]))
    assert layout_of(model) is None


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (RouterLayout((1, 2), EXPERTS, TOP_K, ScoreFunction.SOFTMAX), "layer_ids"),
        (RouterLayout((0, 1, 2), 16, TOP_K, ScoreFunction.SOFTMAX), "num_experts"),
        (RouterLayout((0, 1, 2), EXPERTS, 4, ScoreFunction.SOFTMAX), "top_k"),
        (RouterLayout((0, 1, 2), EXPERTS, TOP_K, ScoreFunction.SIGMOID), "score_function"),
    ],
)
def test_a_trace_of_another_model_is_refused(other: RouterLayout, named: str) -> None:
    check_layout(layout(), layout())
    with pytest.raises(InvalidInputError, match=f"layout: {named} is"):
        check_layout(other, layout())
