"""Attention without a mask, against transformers' own with one: logits, gradients, memory, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from services.learner.model import attention
from services.learner.model.attention import SEGMENTS, Attention, choose
from services.learner.model.isolation import check_isolation
from services.learner.model.policy import load as load_policy
from shared.errors import PreconditionError
from tests.support.attention import LENGTHS, MASKED, Varlen, gemma, packed
from tests.support.models import KINDS, VOCABULARY, save_model
from tests.support.rollouts import load
from tests.support.settings import learner_settings

GPU: dict[str, Any] = {"device": "cuda", "precision": "bfloat16"}


def learnt(model: PreTrainedModel, chosen: Attention, ids: Tensor, positions: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [N * W, V], and the gradients of a random sum of them."""
    logits: Tensor = model(**chosen.inputs(ids, positions)).logits.flatten(0, 1)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def require_equal(masked: PreTrainedModel, model: PreTrainedModel, ids: Tensor, positions: Tensor) -> None:
    own = choose(masked, learner_settings(attn_implementation="masked"))
    own.set_on(masked)
    expected, expected_gradients = learnt(masked, own, ids, positions)
    chosen = Attention(SEGMENTS)
    chosen.set_on(model)
    found, gradients = learnt(model, chosen, ids, positions)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in KINDS if kind not in MASKED),
        ("mixtral", {"sliding_window": 4}),
        ("mixtral", {"sliding_window": 11}),
        ("qwen3_dense", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("gpt_oss", {"sliding_window": 3}),
    ],
)
def test_logits_and_gradients_are_those_with_a_mask(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    masked, model = (load(save_model(tmp_path, kind, **changes)) for _ in range(2))
    assert choose(model, learner_settings()).name == SEGMENTS
    require_equal(masked, model, *packed())


def test_a_soft_cap_and_a_scale_of_the_scores_are_kept() -> None:
    """With a mask too, though transformers' SDPA would leave the cap out."""
    require_equal(gemma(), gemma(), *packed())
    model = gemma()
    assert choose(model, learner_settings(attn_implementation="masked")).name == "eager" != SEGMENTS
    model.config.attn_logit_softcapping = None
    assert choose(model, learner_settings(attn_implementation="masked")).name == "sdpa"


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_several_rows_with_padding_are_read_as_one(tmp_path: Path, kind: str) -> None:
    masked, model = (load(save_model(tmp_path, kind)) for _ in range(2))
    ids = torch.randint(2, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[*range(7), *range(5)], [*range(4), *range(8)]])  # the second row's last 3 are padding
    require_equal(masked, model, ids, positions)


def test_sequences_in_bfloat16_attend_in_float32(tmp_path: Path) -> None:
    """As near to float32 as its inputs are, and with outputs of the model's dtype."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 16, 8, generator=generator).bfloat16() for _ in range(3))
    found, _ = attention.segments_attention(torch.nn.Module(), query, key, value, None, segments=((2, 8),))
    exact, _ = attention.segments_attention(
        torch.nn.Module(), query.float(), key.float(), value.float(), None, segments=((2, 8),)
    )
    assert torch.equal(found, exact.bfloat16())


def test_a_model_has_no_dropout_in_training(tmp_path: Path) -> None:
    """Whatever its config calls it: it would be noise that the sampler has not, and segments know none."""
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    assert config.attn_pdrop > 0
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model, chosen, _ = load_policy(tmp_path, learner_settings())
    assert chosen.name == SEGMENTS
    model.train()
    first, again = (model(**chosen.inputs(*packed())).logits for _ in range(2))
    assert torch.equal(first, again)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """The elements of the largest tensor that anything in the body makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        self.elements = max([self.elements, *(x.numel() for x in made if isinstance(x, Tensor))])
        return result


def test_nothing_as_large_as_a_mask_is_made(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, "qwen3_moe"))
    ids, positions = packed((20,) * 100)
    largest = {}
    for chosen in (Attention("sdpa"), Attention(SEGMENTS)):
        chosen.set_on(model)
        with torch.no_grad(), Largest() as mode:  # type: ignore[no-untyped-call]  # torch gives it no types
            model(**chosen.inputs(ids, positions))
        largest[chosen.name] = mode.elements
    assert largest["sdpa"] >= ids.numel() ** 2 > 4 * largest[SEGMENTS]


@pytest.mark.parametrize("kind", MASKED)
def test_a_family_that_needs_its_mask_keeps_it(tmp_path: Path, kind: str) -> None:
    model = load(save_model(tmp_path, kind))
    assert choose(model, learner_settings()).name == "sdpa"
    with pytest.raises(PreconditionError, match=r'attn_implementation is "segments": .* needs its mask.*"masked"'):
        choose(model, learner_settings(attn_implementation="segments"))


def test_layers_of_another_kind_than_full_and_sliding_attention_need_the_mask(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, "qwen3_moe"))
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert choose(model, learner_settings()).name == "sdpa"
    with pytest.raises(PreconditionError, match="its layers have linear_attention"):
        choose(model, learner_settings(attn_implementation="segments"))


@pytest.mark.parametrize("name", ["position_bias", "indices", "attention_mask", "dropout"])
def test_what_segments_would_leave_out_is_refused(name: str) -> None:
    query = torch.zeros(1, 2, 4, 8)
    given: dict[str, Any] = {"attention_mask": None, name: 0.5 if name == "dropout" else torch.zeros(1, 1, 4, 4)}
    with pytest.raises(ValueError, match=f"knows no {name}"):
        attention.segments_attention(torch.nn.Module(), query, query, query, **given)


def test_a_model_that_does_not_hand_on_the_borders_is_refused(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, "qwen3_moe"))
    chosen = Attention(SEGMENTS)
    chosen.set_on(model)
    check_isolation(model, chosen)
    decoder: Any = model.model
    decoder.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"segments": ()}), with_kwargs=True, prepend=True
    )
    with pytest.raises(PreconditionError, match=r'see each other.*learner\.attn_implementation = "masked"'):
        check_isolation(model, chosen)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether each flash attention is, which a test may change."""
    found = {"flash_attention_3": True, "flash_attention_2": True}
    monkeypatch.setattr(attention, "_AVAILABLE", {name: lambda name=name: found[name] for name in found})
    return found


def test_auto_takes_flash_attention_where_it_can_be_had(tmp_path: Path, installed: dict[str, bool]) -> None:
    model = load(save_model(tmp_path, "qwen3_moe"))
    assert choose(model, learner_settings(**GPU)).name == "flash_attention_3"
    installed["flash_attention_3"] = False
    assert choose(model, learner_settings(**GPU)).name == "flash_attention_2"
    for settings in ({"device": "cuda"}, {"precision": "bfloat16"}, {}):
        assert choose(model, learner_settings(**settings)).name == SEGMENTS
    installed["flash_attention_2"] = False
    assert choose(model, learner_settings(**GPU)).name == SEGMENTS
    assert choose(model, learner_settings(attn_implementation="masked", **GPU)).name == "sdpa"


def test_gpt_oss_has_sinks_that_flash_attention_2_and_3_would_leave_out(
    tmp_path: Path, installed: dict[str, bool]
) -> None:
    model = load(save_model(tmp_path, "gpt_oss"))
    assert choose(model, learner_settings(**GPU)).name == SEGMENTS
    with pytest.raises(PreconditionError, match="'gpt_oss' takes kernels-community"):
        choose(model, learner_settings(attn_implementation="flash_attention_2", **GPU))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"learner\.device is 'cpu'"),
        ({"device": "cuda"}, r'set learner\.precision = "bfloat16"'),
        (GPU, "the package flash-attn is not installed"),
    ],
)
def test_flash_attention_that_cannot_be_had_is_refused_with_the_fix(
    tmp_path: Path, installed: dict[str, bool], settings: dict[str, Any], message: str
) -> None:
    installed["flash_attention_2"] = False
    model = load(save_model(tmp_path, "qwen3_moe"))
    with pytest.raises(PreconditionError, match=rf'attn_implementation is "flash_attention_2": .*{message}'):
        choose(model, learner_settings(attn_implementation="flash_attention_2", **settings))


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> Varlen:
    return Varlen.in_place_of_flash_attention(monkeypatch)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("qwen3_moe", {}), ("deepseek_v3", {}), ("glm4_moe", {}), ("olmoe", {}), ("mixtral", {"sliding_window": 4})],
)
def test_flash_attention_gets_one_row_and_its_borders(
    tmp_path: Path, varlen: Varlen, kind: str, changes: dict[str, Any]
) -> None:
    """transformers' way to flash-attn, with its varlen function replaced by one for the CPU."""
    masked, model = (load(save_model(tmp_path, kind, **changes)) for _ in range(2))
    chosen = Attention("flash_attention_2")
    chosen.set_on(model)
    assert model.config._attn_implementation == SEGMENTS  # until it is on a GPU
    chosen.set_flash_on(model)
    check_isolation(model, chosen)
    varlen.calls.clear()
    ids, positions = packed()
    found = learnt(model, chosen, ids, positions)
    expected = learnt(masked, Attention("sdpa"), ids, positions)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert len(varlen.calls) == model.config.num_hidden_layers
    for call in varlen.calls:
        borders = call["cu_seqlens_q"]
        assert borders.dtype == torch.int32
        assert borders.diff().tolist() == list(LENGTHS)
        assert (call["max_seqlen_q"], call["max_seqlen_k"], call["causal"]) == (12, 12, True)


def test_flash_attention_that_does_not_load_is_refused(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, "qwen3_moe"))
    with pytest.raises(PreconditionError, match=r'comes to flash_attention_3: .*set "segments" in its place'):
        Attention("flash_attention_3").set_flash_on(model)
