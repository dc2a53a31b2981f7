"""The MoE families: one row for each, data only, for every room that treats families differently.

A family is known by the `model_type` of its Hugging Face config. A new one is a new row here, or a `Family` that
another package has as an entry point of `routershift.families`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TypeGuard

from routershift.plugins import with_plugins
from routershift.routing.layout import ScoreFunction

GROUP = "routershift.families"  # entry points of other packages: model_type = "module:object"

# Linear layers that LoRA adapts, by the last part of their name.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LATENT_ATTENTION = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


class Packing(StrEnum):
    """What keeps several sequences in one row apart."""

    POSITION_IDS = "position_ids"  # transformers does, wherever position ids start at 0 again
    OWN_MASK = "own_mask"  # masks that we make: transformers would leave the position ids out
    ONE_CHUNK = "one_chunk"  # position ids, in rows of one attention chunk: chunks count from the start of the row


@dataclass(frozen=True, slots=True)
class Family:
    """What a family's routers do, and what other rooms must know of it.

    The forward of a router gives (logits [N, E], combine weights [N, K], expert ids [N, K]) for N tokens, E experts and
    K experts activated per token. Whatever selects the ids, such as groups of experts or a correction bias, has no
    part in the weights: these follow from the logits at the ids.
    """

    router: str  # path of the router inside a decoder layer in transformers; absent in dense layers
    score_function: ScoreFunction
    normalised: bool = False  # weights are divided by their sum; a router's own norm_topk_prob goes before
    sparse: bool = False  # the forward gives (weights [N, E], 0 for experts that are not chosen; logits [N, E])
    packing: Packing = Packing.POSITION_IDS
    lora_attention: tuple[str, ...] = ATTENTION
    lora_feed_forward: tuple[str, ...] = FEED_FORWARD
    vllm_names_scores: bool = True  # False: vLLM does not say how the routers score, the table does
    vllm_on_cpu: bool = True  # False: vLLM has what it needs for GPUs alone
    torch_engine: bool = True  # False: the torch engine cannot compute its attention


_BUILT_IN: Mapping[str, Family] = {
    "deepseek_v3": Family("mlp.gate", ScoreFunction.SIGMOID, lora_attention=LATENT_ATTENTION),
    "glm4_moe": Family("mlp.gate", ScoreFunction.SIGMOID),
    "glm_moe_dsa": Family(  # GLM-5; DeepSeek's sparse attention: each token attends to those that an indexer picks
        "mlp.gate",
        ScoreFunction.SIGMOID,
        lora_attention=LATENT_ATTENTION,
        vllm_on_cpu=False,
    ),
    "gpt_oss": Family(
        "mlp.router",
        ScoreFunction.SOFTMAX_TOPK,
        packing=Packing.OWN_MASK,
        vllm_names_scores=False,
    ),
    "llama4_text": Family(
        "feed_forward.router",
        ScoreFunction.SIGMOID,
        sparse=True,
        packing=Packing.ONE_CHUNK,
        vllm_names_scores=False,
        torch_engine=False,  # its temperatures count one position for all rows
    ),
    # vLLM's routing on CPU knows sigmoid scores only where experts come from groups.
    "minimax_m2": Family("mlp.gate", ScoreFunction.SIGMOID, normalised=True, vllm_on_cpu=False),
    "mixtral": Family("mlp.gate", ScoreFunction.SOFTMAX, normalised=True),
    "olmoe": Family("mlp.gate", ScoreFunction.SOFTMAX),
    "qwen2_moe": Family("mlp.gate", ScoreFunction.SOFTMAX),
    "qwen3_moe": Family("mlp.gate", ScoreFunction.SOFTMAX),
}

_STATE = "its {} layers carry their state from one sequence of a packed row into the next"
# MoE families that cannot be trained, with any algorithm.
_REFUSED: Mapping[str, str] = {
    "nemotron_h": _STATE.format("Mamba"),
    "qwen3_5_moe": _STATE.format("linear-attention"),
    "qwen3_5_moe_text": _STATE.format("linear-attention"),
    "qwen3_next": _STATE.format("linear-attention"),
}


@cache
def families() -> Mapping[str, Family]:
    """Every family by its `model_type`.

    Raises:
        PreconditionError: an entry point that does not load, is no family, or has a name that is taken.
    """
    return with_plugins(GROUP, _BUILT_IN, _is_family, "Family")


def family_of(model_type: str) -> Family | None:
    """The row of a `model_type`; None for a dense model or an unknown family. Raises as `families` does."""
    return families().get(model_type)


def why_refused(model_type: str) -> str:
    """Why a known family cannot be trained, with any algorithm; "" for all others."""
    return _REFUSED.get(model_type, "")


def no_routers_in_words(model_type: str) -> str:
    """Why a model of this type cannot be trained with what needs routers."""
    return (
        f"router shift and routing replay need a model with routers; {model_type!r} is dense or unknown. "
        f"Known families: {', '.join(sorted(families()))}. Other models train with an algorithm without router "
        "shift, such as gmpo, and without routing replay"
    )


def _is_family(loaded: object) -> TypeGuard[Family]:
    return isinstance(loaded, Family)
