"""Memory by component of one learner rank and of one generation worker.

Weights, gradients, moments and caches are exact sums. What a pass keeps for the backward pass is counted tensor by
tensor, as transformers 5.19 and torch 2.13 keep them on a CPU with experts in stacked weights: allocations of training
steps were recorded while one size of a model was changed at a time. tests/unit/planner/test_memory.py holds the sum
against the peak of real steps. Kernels of a GPU keep some tensors fewer, so there it is an upper estimate.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from services.generation.settings import GenerationSettings
from services.learner.distributed.division import check_heads, key_copies, width_of
from services.learner.settings import LearnerSettings
from services.planner.model import WIDTH, Layer, Model

FLOAT32 = 4
_LOGITS = 3  # tensors of the size of a chunk's logits that the head has at once
_FILE_BYTES = 1 << 30  # of published weights that rank 0 gathers at a time: `services.learner.model.export`
_PREFETCHED = 2  # decoder layers that FSDP2 has gathered at once: the one that computes, and the next


@dataclass(frozen=True, slots=True)
class Part:
    """Memory of one kind in one process."""

    component: str  # learner, generation or redis
    what: str
    bytes: int
    device: str  # cpu, or the accelerator's name as settings have it
    change: str  # settings that make it smaller
    is_estimate: bool = False
    is_shared: bool = False  # by all processes of the component on a machine: one of them has it


@dataclass(frozen=True, slots=True)
class _Kept:
    """Bytes that a decoder layer keeps for each token, for each value of one kind."""

    hidden: int  # the residual stream twice, and what two norms make of it
    routed: int  # a hidden state on its way through one expert
    inner: int
    query: int  # with a norm; see `plain_query`
    plain_query: int
    key: int
    plain_key: int
    probability: int  # of an expert
    route: int  # of an expert that is taken: ids, order and weight


_KEPT = {
    "float32": _Kept(24, 8, 16, query=20, plain_query=12, key=16, plain_key=8, probability=4, route=40),
    "bfloat16": _Kept(16, 4, 8, query=16, plain_query=10, key=14, plain_key=8, probability=4, route=40),
}


def kept_bytes(layer: Layer, hidden: int, precision: str, copies: int = 1) -> int:
    """Bytes that a layer keeps of each token of a pass. Args: copies: of keys and values, which attention keeps."""
    each = _KEPT[precision]
    query, key = (each.query, each.key) if layer.normalises_queries else (each.plain_query, each.plain_key)
    routed = layer.top_k * (each.routed * hidden + each.route) + each.probability * layer.experts
    key += (copies - 1) * each.plain_key
    return each.hidden * hidden + routed + each.inner * layer.inner + query * layer.attended + key * layer.key


def passing_bytes(layer: Layer, hidden: int, precision: str) -> int:
    """Bytes of each token that the backward pass of a layer makes and gives back: gradients around the experts."""
    width = WIDTH[precision]
    each = layer.inner // max(1, layer.top_k)
    return width * (hidden + max(1, layer.top_k) * max(3 * hidden, 2 * each - hidden))


def activation_bytes(
    model: Model, tokens: int, precision: str, checkpointing: bool, copies: int = 1
) -> tuple[int, int]:
    """Bytes of the activations of a pass of this many tokens: kept all the time, and for the time of one layer.

    Needs the model's shapes. Args: copies: of keys and values, where a row is divided among more ranks than there are.
    """
    layers, hidden, width = model.layers, model.hidden, WIDTH[precision]
    kept = [kept_bytes(layer, hidden, precision, copies) for layer in layers]
    passing = max(passing_bytes(layer, hidden, precision) for layer in layers)
    ends = 4 * hidden * width  # the embedding, the last norm, and the rows that predict
    if checkpointing:
        return tokens * (len(layers) * hidden * width + ends), tokens * (max(kept) + passing)
    return tokens * (sum(kept) + ends), tokens * passing


def logits_bytes(model: Model, tokens: int, learner: LearnerSettings) -> int:
    """Bytes of the logits of one chunk of response tokens, and of what the loss makes of them."""
    whole = FLOAT32 * model.vocabulary
    return _LOGITS * max(whole, min(whole * tokens, learner.head_chunk_bytes))


def gathered_bytes(model: Model, precision: str, expert: int = 1) -> int:
    """Bytes of the weights that a rank has whole for a moment, and of their gradients before they are divided.

    Args:
        expert: ranks that divide the experts of a layer, which no rank gathers then.
    """
    largest = max(layer.parameters - layer.routed + layer.routed // expert for layer in model.layers)
    ends = model.parameters - sum(layer.parameters for layer in model.layers)
    return WIDTH[precision] * (_PREFETCHED * largest + ends) + (WIDTH[precision] + FLOAT32) * max(largest, ends)


def update_bytes(model: Model, settings: LearnerSettings, holders: int) -> int:
    """Bytes that an update takes for itself, of slices that are no larger than what a rank has of a parameter."""
    optimizer, experts = settings.optimizer, max((layer.routed for layer in model.layers), default=0)
    largest = max(2 * experts // 3, model.vocabulary * model.hidden) // holders  # gates and ups are one parameter
    return min(optimizer.update_bytes, optimizer.update_value_bytes * largest)


def learner(
    model: Model,
    settings: LearnerSettings,
    ranks: int,
    longest: int,
    trained: int | None = None,
    *,
    sends: bool = False,
) -> Iterator[Part]:
    """Memory of one rank.

    Args:
        ranks: of the learner; `learner.mesh` says over how many of them weights, gradients and moments are divided.
        longest: tokens of the longest prompt and response: a pass has at least that many.
        trained: parameters of the adapters, where there are any; None trains all.
        sends: whether versions go over the network.

    Raises:
        InvalidInputError: `learner.mesh` is of another number of ranks, or divides heads that it cannot divide.
    """
    shape = settings.mesh.over(ranks)
    heads = model.number("num_attention_heads")
    keys = model.number("num_key_value_heads") or heads
    if shape.context > 1:
        check_heads(shape.context, heads, keys)
    count, device = model.parameters, settings.device
    learned, frozen = (count, 0) if trained is None else (trained, count)
    # A pass in bfloat16 rounds what it gathers, so frozen weights stay as the folder has them.
    narrow = min(FLOAT32, model.width) if settings.precision == "bfloat16" else FLOAT32
    optimizer = settings.optimizer
    of_moments, masters = optimizer.moment_bytes, optimizer.offload == "masters"
    spread = "learner.parallel.processes" if shape.replicate == 1 else "learner.mesh.replicate = 1"
    fewer = f"{spread} or learner.lora.rank"
    wide = model.width if masters else FLOAT32
    yield Part("learner", "trained weights", wide * learned // shape.holders, device, spread)
    if frozen:
        yield Part("learner", "frozen weights", narrow * frozen // shape.holders, device, spread)
    if learned:  # unknown for adapters of weights that are not here
        yield Part("learner", "gradients", FLOAT32 * learned // shape.holders, device, fewer)
        place = device if optimizer.offload == "none" else "cpu"
        less = "learner.optimizer.offload" if place == device else "learner.optimizer.moments"
        yield Part("learner", "moments of AdamW", int(of_moments * learned) // shape.holders, place, less)
        if masters:
            yield Part("learner", "master weights", FLOAT32 * learned // shape.holders, "cpu", spread)
    if settings.kl_coefficient and trained is None:
        yield Part("learner", "reference model", narrow * count // shape.holders, device, "learner.kl_coefficient = 0")
    tokens = width_of(max(settings.micro_batch_tokens, longest), shape.context)
    smaller = "learner.micro_batch_tokens, or learner.activation_checkpointing = true"
    moment, change, passing = logits_bytes(model, tokens, settings), "learner.head_chunk_bytes", 0
    if model.layers:
        if ranks > 1 or settings.precision != "float32":
            passing += (whole := gathered_bytes(model, settings.precision, shape.expert))
            divided = "learner.mesh.expert" if model.experts else "a smaller model"
            yield Part("learner", "gathered layers", whole, device, divided, is_estimate=True)
        copies = key_copies(shape.context, keys) if shape.context > 1 else 1
        kept, layer = activation_bytes(model, tokens, settings.precision, settings.activation_checkpointing, copies)
        passing += kept
        yield Part("learner", "activations of a pass", kept, device, smaller, is_estimate=True)
        moment, change = max((moment, change), (layer, "learner.micro_batch_tokens"))
    # The head is done with its logits before the first layer runs backwards.
    yield Part("learner", "logits or a layer's backward", moment, device, change, is_estimate=True)
    # An update begins when the last pass is over.
    if (more := update_bytes(model, settings, shape.holders) - passing - moment) > 0:
        change = "learner.optimizer.update_bytes"
        yield Part("learner", "update, beyond a pass", more, device, change, is_estimate=True)
    if settings.checkpoints.background and learned:
        change = "learner.checkpoints.background = false"
        yield Part(
            "learner", "copy for a checkpoint", int((FLOAT32 + of_moments) * learned) // shape.holders, "cpu", change
        )
    if sends:
        change = "run.weights_transfer = 'files'"
        yield Part("learner", "version that is sent", model.width * count // shape.holders, device, change)
    # Those of one file, and its bytes on their way to disk.
    of_file = 2 * min(model.width * count, _FILE_BYTES)
    yield Part("learner", "weights to publish", of_file, "cpu", "a smaller model", is_shared=True)


def generation(model: Model, settings: GenerationSettings, device: str, *, receives: bool = False) -> Iterator[Part]:
    """Memory of one worker.

    Args:
        device: that vLLM samples on; the torch engine has a setting of its own.
        receives: whether versions come over the network.
    """
    if receives:
        # vLLM keeps the one that serves as well, for what changes and to go back to.
        versions, change = 2 if settings.engine == "vllm" else 1, "run.weights_transfer = 'files'"
        yield Part("generation", "versions that arrive", versions * model.width * model.parameters, "cpu", change)
    count, width = model.parameters, generation_width(model, settings)
    if settings.engine != "vllm":
        yield Part("generation", "weights", width * count, settings.device, "a smaller model")
        return
    change = "generation.vllm.dtype = 'auto', or generation.vllm.tensor_parallel_size"
    yield Part("generation", "weights", width * count // settings.vllm.tensor_parallel_size, device, change)
    if settings.vllm.gpu_memory_utilization is None:
        yield Part("generation", "KV cache", settings.vllm.kv_cache_bytes, device, "generation.vllm.kv_cache_bytes")


def generation_width(model: Model, settings: GenerationSettings) -> int:
    """Bytes of a parameter as an engine holds it."""
    dtype = settings.vllm.dtype if settings.engine == "vllm" else "float32"
    return WIDTH.get(dtype, model.width)


def of_machine(parts: Iterable[Part], ranks: int) -> list[Part]:
    """Parts with the bytes of all ranks of a learner on one machine, which share its host memory.

    Args:
        parts: of one rank; each has a GPU of its own.
    """
    return [
        replace(part, bytes=part.bytes * ranks)
        if part.component == "learner" and part.device == "cpu" and not part.is_shared
        else part
        for part in parts
    ]


def on(device: str, parts: Sequence[Part]) -> int:
    """Bytes of the parts on one device."""
    return sum(part.bytes for part in parts if part.device == device)
