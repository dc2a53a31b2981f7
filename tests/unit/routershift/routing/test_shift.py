"""Router shift against a brute-force computation from full router logits."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from routershift.routing.choices import LayerAggregation
from routershift.routing.hooks import Routing
from routershift.routing.layout import ScoreFunction
from routershift.routing.routers import routers_of
from routershift.routing.score_code import MISSING_LOG_SCORE
from routershift.routing.shift import Shift, clip_log_gamma
from services.learner.data.batch import Group
from services.learner.data.collate import Batch
from tests.support.models import MOE_KINDS, TOP_K, save_model
from tests.support.rollouts import forward, load, micro_batch, packed, perturbed, random_groups, routing
from tests.support.routing import SCALE, meter_of


@pytest.fixture
def process_group() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]  # not in its __all__
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def measure(model: PreTrainedModel, batch: Batch, aggregation: LayerAggregation = "mean") -> Shift:
    with Routing(model, aggregation).observing(batch.routes) as observation:
        forward(model, batch)
    shift = observation.result()
    assert shift is not None
    return shift


def log_score(function: ScoreFunction, logits: list[float], expert: int, recorded: list[int]) -> float:
    if function is ScoreFunction.SIGMOID:
        return -math.log1p(math.exp(-logits[expert]))
    among = recorded if function is ScoreFunction.SOFTMAX_TOPK else range(len(logits))
    return logits[expert] - math.log(sum(math.exp(logits[e]) for e in among))


@torch.no_grad()
def brute_force(model: PreTrainedModel, groups: list[Group], aggregation: LayerAggregation) -> tuple[list[float], int]:
    """log gamma of every response token, one sequence and one token at a time; and how many top-k sets changed."""
    log_gamma, changed = [], 0
    for sample in (weighted.sample for weighted in micro_batch(groups).samples):
        trace = sample.completion.router_trace
        assert trace is not None
        ids = torch.tensor(np.concatenate((sample.prompt_ids, sample.completion.token_ids)))[None]
        with routing(model) as passes:
            model(ids, use_cache=False)
        for t in range(sample.completion.token_ids.size):
            row = sample.prompt_ids.size - 1 + t
            factors = []
            for layer, logits in enumerate(passes[0].logits[row].double().tolist()):
                recorded = trace.expert_ids[t, layer].tolist()
                changed += set(passes[0].expert_ids[row, layer].tolist()) != set(recorded)
                distances = [
                    abs(log_score(trace.layout.score_function, logits, e, recorded) - float(old))
                    for e, old in zip(recorded, trace.scores[t, layer], strict=True)
                ]
                if aggregation == "mean":
                    factors.append(math.exp(-sum(distances) / TOP_K))
                else:
                    factors.append(sum(math.exp(-d) for d in distances) / TOP_K)
            product = sum(math.log(factor) for factor in factors)
            log_gamma.append(product / len(factors) if aggregation == "mean" else product)
    return log_gamma, changed


@pytest.mark.parametrize("aggregation", ["mean", "product"])
@pytest.mark.parametrize("kind", MOE_KINDS)
def test_gamma_equals_the_definition_from_full_logits(tmp_path: Path, kind: str, aggregation: LayerAggregation) -> None:
    folder = save_model(tmp_path, kind)
    groups = random_groups(load(folder), groups=4, samples=4)
    live = perturbed(load(folder), SCALE)
    expected, changed = brute_force(live, groups, aggregation)
    batch = packed(groups)
    shift = measure(live, batch, aggregation)
    assert len(batch.input_ids) < 16  # rows hold several sequences
    assert changed > 0
    assert min(expected) < math.log(0.9)
    np.testing.assert_allclose(shift.log_gamma.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert not shift.log_gamma.requires_grad


def test_gamma_is_one_on_the_weights_that_sampled(folder: Path) -> None:
    """Up to the float16 of the recorded scores."""
    model = load(folder)
    shift = measure(model, packed(random_groups(model, groups=4, samples=4)))
    assert shift.log_gamma.abs().max() < 2e-3


def test_the_shift_of_each_layer_is_reported(folder: Path) -> None:
    """Only the last router moves, so only the last layer shifts."""
    model = load(folder)
    batch = packed(random_groups(model, groups=4, samples=4))
    with torch.no_grad():
        routers_of(model)[2].get_parameter("weight").mul_(1.5)
    shift = measure(model, batch)
    tokens = int(batch.mask.sum())
    assert shift.layers[:2].max() / tokens < 1e-3
    assert shift.layers[2] / tokens > 0.01
    torch.testing.assert_close(-shift.log_gamma.sum(), shift.layers.sum() / 3, rtol=1e-4, atol=1e-4)


def test_activation_checkpointing_counts_no_layer_twice(folder: Path) -> None:
    batch = packed(random_groups(load(folder), groups=4, samples=4))
    expected = measure(perturbed(load(folder), SCALE), batch)
    model = perturbed(load(folder), SCALE).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    routers_of(model)[1].register_forward_hook(lambda *_: calls.append(1))
    with Routing(model).observing(batch.routes) as observation:
        forward(model, batch).sum().backward()  # type: ignore[no-untyped-call]
    shift = observation.result()
    assert shift is not None
    assert len(calls) == 2  # the layer really ran again
    torch.testing.assert_close(shift.log_gamma, expected.log_gamma)
    torch.testing.assert_close(shift.layers, expected.layers)


@pytest.mark.usefixtures("process_group")
def test_a_sharded_model_in_bfloat16_is_measured_in_float32(folder: Path) -> None:
    """Hooks that were placed before FSDP2 took the model apart see whole tensors, of its mixed precision."""
    batch = packed(random_groups(load(folder), groups=4, samples=4))
    expected = measure(perturbed(load(folder), SCALE), batch)
    model = perturbed(load(folder), SCALE).train()
    routing = Routing(model)
    seen: list[torch.Tensor] = []
    routers_of(model)[1].register_forward_hook(lambda _, __, output: seen.append(output[0]))
    for module in (*model.model.layers, model):
        fully_shard(module, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with routing.observing(batch.routes) as observation:
        forward(model, batch).sum().backward()  # type: ignore[no-untyped-call]
    shift = observation.result()
    assert shift is not None
    assert type(seen[0]) is torch.Tensor
    assert seen[0].dtype is torch.bfloat16
    assert shift.log_gamma.dtype is torch.float32
    assert (shift.log_gamma - expected.log_gamma).abs().mean() < 0.02 < expected.log_gamma.abs().mean()


def test_no_gradient_flows_through_gamma(folder: Path) -> None:
    """The gradient is that of a constant gamma, and another one would be seen: a live gamma has a gradient here."""
    batch = packed(random_groups(load(folder), groups=4, samples=4))
    assert batch.routes is not None
    routes = batch.routes

    def router_gradient(log_gamma_of: str) -> torch.Tensor:
        model = perturbed(load(folder), SCALE)
        router = routers_of(model)[2]
        seen: list[torch.Tensor] = []
        router.register_forward_hook(lambda _, __, output: seen.append(output[0]))
        with Routing(model).observing(routes) as observation:
            logprobs = forward(model, batch).flatten(0, 1)[batch.rows].log_softmax(-1)
            shift = observation.result()
            assert shift is not None
            log_gamma = shift.log_gamma
            if log_gamma_of == "constant":
                log_gamma = torch.tensor(log_gamma.tolist())
            elif log_gamma_of == "live":
                scores = seen[0].log_softmax(-1)[routes.rows].gather(1, routes.expert_ids[:, 2].long())
                live = -(scores - routes.log_scores[:, 2].float()).abs().mean(1) / 3
                log_gamma = log_gamma + live - live.detach()
            ratio = (logprobs.gather(1, batch.targets[:, None])[:, 0] - batch.behaviour_logprobs[batch.mask]).exp()
            (ratio * log_gamma.exp()).sum().backward()  # type: ignore[no-untyped-call]
        gradient = router.get_parameter("weight").grad
        assert gradient is not None
        return gradient

    torch.testing.assert_close(router_gradient("recorded"), router_gradient("constant"), rtol=0, atol=0)
    assert (router_gradient("recorded") - router_gradient("live")).abs().max() > 1e-4


def test_a_token_with_a_missing_route_takes_gamma_one(folder: Path) -> None:
    groups = random_groups(load(folder), groups=2, samples=3)
    live = perturbed(load(folder), SCALE)
    whole = measure(live, packed(groups))
    trace = micro_batch(groups).samples[0].sample.completion.router_trace
    assert trace is not None
    trace.scores[0, 1] = MISSING_LOG_SCORE  # one layer of the first token
    batch = packed(groups)
    shift = measure(live, batch)
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
    trace.scores[0, 1, 0] = 0.0
    batch = packed(groups)
    assert batch.routes is not None
    assert not batch.routes.missing.any()


def test_gamma_has_a_floor() -> None:
    log_gamma = torch.tensor([0.0, -0.1, math.log(0.8), -5.0])
    expected = torch.tensor([1.0, math.exp(-0.1), 0.8, 0.8])
    torch.testing.assert_close(clip_log_gamma(log_gamma, 0.8).exp(), expected)


def test_nothing_is_measured_outside_of_an_observation(folder: Path) -> None:
    model = load(folder)
    batch = packed(random_groups(model, groups=2, samples=2))
    routing = Routing(model)
    with routing.observing(batch.routes) as observation:
        pass
    forward(model, batch)
    shift = observation.result()
    assert shift is not None
    assert not shift.layers.any()


def test_what_is_kept_does_not_grow_with_the_number_of_experts(folder: Path) -> None:
    """One float a token and two a layer; no [tokens, layers, experts]."""
    routes = packed(random_groups(load(folder), groups=2, samples=2)).routes
    assert routes is not None
    meter = meter_of(routes)
    for layer in range(3):
        meter.add(layer, torch.randn(int(routes.rows.max()) + 1, 4096))
    kept = {id(value): value.numel() for value in vars(meter).values() if isinstance(value, torch.Tensor)}
    assert sum(kept.values()) == routes.rows.numel() + 2 * 3
