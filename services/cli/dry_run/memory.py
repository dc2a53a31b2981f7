"""The memory that a run will take, by component, from the settings and the headers of the weights alone.

Weights, gradients, moments and caches are exact sums. What a forward pass keeps is an estimate (arXiv 2205.05198,
equation 2, with attention that keeps no matrix of scores), good to a factor of about two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from routershift.routing.families import ATTENTION, FEED_FORWARD, family_of
from services.cli.recipe import Recipe
from shared.errors import InvalidInputError
from shared.models.folder import INDEX, read_json, tensor_shapes, weight_files
from shared.models.layout import text_config
from shared.streams.keys import Stream

_FLOAT32 = 4
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}  # bytes, by the name of a dtype
_KEPT_LINEAR = 17  # values of the hidden size that a layer keeps for the backward pass, for each token
_LOGITS = 3  # tensors of the size of a chunk's logits that the head has at once


@dataclass(frozen=True, slots=True)
class Part:
    """Memory of one kind in one process."""

    component: str  # learner, generation or redis
    what: str
    bytes: int
    device: str  # cpu, or the accelerator's name as settings have it
    change: str  # settings that make it smaller
    is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """What a model folder says of its size."""

    config: Mapping[str, Any]
    parameters: int
    shapes: Mapping[str, tuple[int, ...]]  # by tensor; empty where the weights are not here
    width: int  # bytes of a parameter as the folder has it

    @property
    def text(self) -> Mapping[str, Any]:
        return text_config(self.config)

    def number(self, *names: str) -> int:
        """The first of these keys that the config has; 0 where it has none."""
        return next((self.text[name] for name in names if isinstance(self.text.get(name), int)), 0)

    @property
    def kv_width(self) -> int:
        """Values that a token adds to the KV cache of all layers; 0 where the config does not say."""
        layers = self.number("num_hidden_layers")
        if latent := self.number("kv_lora_rank"):
            return layers * (latent + self.number("qk_rope_head_dim"))
        heads = self.number("num_attention_heads")
        size = self.number("head_dim") or (self.number("hidden_size") // heads if heads else 0)
        return 2 * layers * (self.number("num_key_value_heads") or heads) * size

    @property
    def has_windows(self) -> bool:
        """Whether some layers keep less than the whole sequence."""
        kinds = self.text.get("layer_types") or ()
        return any(kind != "full_attention" for kind in kinds)


def read(folder: Path) -> Model:
    """A model folder by its config and the headers of its weights, or by their index where the weights are not here.

    Raises:
        NotFoundError: neither is there.
        CorruptDataError: a file is broken.
    """
    config = read_json(folder / "config.json")
    named = text_config(config).get("dtype") or config.get("dtype") or config.get("torch_dtype")
    width = _WIDTH.get(str(named), 2)
    size = None
    if (folder / INDEX).is_file() and not list(folder.glob("*.safetensors")):
        metadata = read_json(folder / INDEX).get("metadata")
        size = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(size, int):
        return Model(config, size // width, {}, width)
    shapes = tensor_shapes(weight_files(folder))
    return Model(config, sum(_count(name, shape) for name, shape in shapes.items()), shapes, width)


def parts(recipe: Recipe, model: Model, longest_prompt: int) -> Iterator[Part]:
    """All that is known to be allocated, for one learner rank and one generation worker."""
    yield from _learner(recipe, model, longest_prompt)
    yield from _generation(recipe, model)
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
    return vllm.kv_cache_bytes // (tokens * model.kv_width * _generation_width(recipe, model))


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


def _count(name: str, shape: tuple[int, ...]) -> int:
    """Parameters in a tensor. MXFP4 has two in each byte of its blocks, and scales beside them."""
    return 0 if name.endswith("_scales") else prod(shape) * (2 if name.endswith("_blocks") else 1)


def _learner(recipe: Recipe, model: Model, longest_prompt: int) -> Iterator[Part]:
    learner, count = recipe.learner, model.parameters
    ranks, device = learner.parallel.processes, learner.device
    trained = lora_parameters(recipe, model) if learner.lora.rank else count
    frozen = count if learner.lora.rank else 0
    spread = "learner.parallel.processes"
    yield Part("learner", "weights in float32", _FLOAT32 * (trained + frozen) // ranks, device, spread)
    if trained:  # unknown for adapters of weights that are not here
        yield Part("learner", "gradients", _FLOAT32 * trained // ranks, device, f"{spread} or learner.lora.rank")
        yield Part(
            "learner", "moments of AdamW", 2 * _FLOAT32 * trained // ranks, device, f"{spread} or learner.lora.rank"
        )
    if learner.kl_coefficient and not learner.lora.rank:
        yield Part("learner", "reference model", _FLOAT32 * count // ranks, device, "learner.kl_coefficient = 0")
    # At least one response goes through, however few tokens a pass may have.
    tokens = max(learner.micro_batch_tokens, longest_prompt + recipe.rollout.max_tokens)
    width = _WIDTH[learner.precision]
    layers, hidden = model.number("num_hidden_layers"), model.number("hidden_size")
    vocabulary = model.number("vocab_size")
    logits = _LOGITS * max(_FLOAT32 * vocabulary, min(_FLOAT32 * tokens * vocabulary, learner.head_chunk_bytes))
    yield Part("learner", "logits of a chunk", logits, device, "learner.head_chunk_bytes", is_estimate=True)
    active = max(1, model.number("num_experts_per_tok"))
    inner = 3 * active * model.number("moe_intermediate_size", "intermediate_size")
    layer = tokens * (_KEPT_LINEAR * hidden + inner) * width
    kept = layer + layers * tokens * hidden * width if learner.activation_checkpointing else layers * layer
    change = "learner.micro_batch_tokens, or learner.activation_checkpointing = true"
    yield Part("learner", "activations of a pass", kept, device, change, is_estimate=True)
    yield Part("learner", "weights to publish", model.width * count, "cpu", "a smaller model")


def _generation(recipe: Recipe, model: Model) -> Iterator[Part]:
    settings, count = recipe.generation, model.parameters
    width = _generation_width(recipe, model)
    if settings.engine == "vllm":
        device, ranks = _vllm_device(recipe), settings.vllm.tensor_parallel_size
        change = "generation.vllm.dtype = 'auto', or generation.vllm.tensor_parallel_size"
        yield Part("generation", "weights", width * count // ranks, device, change)
        if settings.vllm.gpu_memory_utilization is None:
            yield Part("generation", "KV cache", settings.vllm.kv_cache_bytes, device, "generation.vllm.kv_cache_bytes")
    else:
        yield Part("generation", "weights", width * count, settings.device, "a smaller model")


def _generation_width(recipe: Recipe, model: Model) -> int:
    dtype = recipe.generation.vllm.dtype if recipe.generation.engine == "vllm" else "float32"
    return _WIDTH.get(dtype, model.width)


def _vllm_device(recipe: Recipe) -> str:
    """vLLM takes what its build is for; a learner on a GPU is the best sign of one."""
    return recipe.learner.device if recipe.generation.vllm.gpu_memory_utilization is None else "cuda"


def largest(found: Sequence[Part]) -> Part:
    return max(found, key=lambda part: part.bytes)
