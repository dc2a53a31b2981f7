"""The memory that a recipe will take, by component, from its settings and the headers of the weights alone."""

from collections.abc import Iterator, Sequence
from math import prod

from routershift.routing.families import ATTENTION, FEED_FORWARD, family_of
from services.cli.recipe import Recipe
from services.planner import memory
from services.planner.memory import Part
from services.planner.model import Model
from shared.errors import InvalidInputError
from shared.streams.keys import Stream


def parts(recipe: Recipe, model: Model, longest_prompt: int) -> Iterator[Part]:
    """All that is known to be allocated, for one learner rank and one generation worker."""
    learner = recipe.learner
    trained = lora_parameters(recipe, model) if learner.lora.rank else None
    longest = longest_prompt + recipe.rollout.max_tokens
    sends = recipe.run.weights_transfer == "broadcast"
    yield from memory.learner(model, learner, learner.parallel.processes, longest, trained, sends=sends)
    yield from memory.generation(model, recipe.generation, _vllm_device(recipe), receives=sends)
    streams = recipe.streams.max_bytes * (len(Stream) + 1)
    yield Part("redis", "streams at their fullest", streams, "cpu", "streams.max_bytes")


def lora_parameters(recipe: Recipe, model: Model) -> int:
    """Parameters of the adapters, by the shapes of the weights that they adapt."""
    lora, family = recipe.learner.lora, family_of(str(model.text.get("model_type")))
    attention = family.lora_attention if family else ATTENTION
    feed_forward = (*(family.lora_feed_forward if family else FEED_FORWARD), "gate_up_proj", "w1", "w2", "w3")
    names = {"attention": attention, "experts": feed_forward, "all": (*attention, *feed_forward)}[lora.targets]
    adapted = (
        shape
        for tensor, shape in model.shapes.items()
        if len(shape) > 1 and tensor.removesuffix(".weight").rpartition(".")[2] in names
    )
    return sum(lora.rank * prod(shape[:-2]) * sum(shape[-2:]) for shape in adapted)


def sequences_that_fit(recipe: Recipe, model: Model, tokens: int) -> int | None:
    """Whole sequences of this many tokens that vLLM's KV cache holds; None where its size is not known here."""
    vllm = recipe.generation.vllm
    if recipe.generation.engine != "vllm" or vllm.gpu_memory_utilization is not None or not model.kv_width:
        return None
    return vllm.kv_cache_bytes // (tokens * model.kv_width * memory.generation_width(model, recipe.generation))


def check_kv_cache(recipe: Recipe, model: Model, tokens: int, source: str) -> None:
    """Refuses a KV cache that does not hold one longest sequence: vLLM does not start with it.

    Args:
        tokens, source: the length of that sequence, and what says so.

    Raises:
        InvalidInputError: names the setting, its value and the fix.
    """
    if sequences_that_fit(recipe, model, tokens) == 0 and not model.has_windows:
        raise InvalidInputError(
            f"generation.vllm.kv_cache_bytes is {recipe.generation.vllm.kv_cache_bytes}, too little for one sequence "
            f"of {tokens} tokens ({source}); raise it, or set generation.max_model_len to what a prompt and its "
            "response need"
        )


def _vllm_device(recipe: Recipe) -> str:
    """vLLM takes what its build is for; a learner on a GPU is the best sign of one."""
    return recipe.learner.device if recipe.generation.vllm.gpu_memory_utilization is None else "cuda"


def largest(found: Sequence[Part]) -> Part:
    return max(found, key=lambda part: part.bytes)
