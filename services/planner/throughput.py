"""How long the parts of a step take on given GPUs: bytes over bandwidths and operations over rates (a roofline).

What hardware reaches of its peaks is a table of assumptions, which a plan prints: replace them by what you measured.
"""

from dataclasses import dataclass, field

from routershift.trajectory import RouterExport, ScoreDtype
from services.generation.settings import GenerationSettings
from services.planner.hardware import PER_MACHINE, Gpu
from services.planner.model import Model

_PLAIN = 4 + 4 + 4  # bytes a token of ids, log-probs and text


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Shares of peaks that are reached, and the rest that no data sheet has."""

    training_flops: float = field(default=0.30, metadata={"help": "share of peak operations in forward and backward"})
    sampling_flops: float = field(default=0.40, metadata={"help": "share of peak operations in prefill and decoding"})
    memory_bandwidth: float = field(default=0.60, metadata={"help": "share of the memory's bandwidth in decoding"})
    network: float = field(default=0.70, metadata={"help": "share of links and network while weights travel"})
    memory: float = field(default=0.90, metadata={"help": "share of a GPU's memory that is used"})
    decode_seconds: float = field(default=0.004, metadata={"help": "seconds of a decoding step beside its arithmetic"})
    step_seconds: float = field(default=2.0, metadata={"help": "seconds of a training step beside its arithmetic"})
    reward_seconds: float = field(default=1.0, metadata={"help": "seconds from a whole group to its rewards"})
    unused: float = field(default=0.30, metadata={"help": "share of groups that are sampled and not trained on"})


@dataclass(frozen=True, slots=True)
class Workload:
    """What a step samples and trains on."""

    groups: int  # prompts in a step
    n: int  # responses to each
    prompt_tokens: int
    mean_tokens: int  # of a response
    max_tokens: int

    @property
    def responses(self) -> int:
        return self.groups * self.n

    @property
    def trained_tokens(self) -> int:
        """Tokens that go through the learner in a step, prompts among them."""
        return self.responses * (self.prompt_tokens + self.mean_tokens)

    @property
    def sampled_tokens(self) -> int:
        """Tokens of the responses that a step trains on."""
        return self.responses * self.mean_tokens


def training_flops(model: Model, tokens: int, context: float, checkpointing: bool) -> float:
    """Operations of a forward and a backward pass: 6 for each active parameter and token (arXiv 2001.08361, table 1).

    Attention to `context` tokens adds 12 for each value that it hands on; checkpoints repeat the forward pass.
    """
    attended = sum(layer.attended for layer in model.layers)
    return tokens * (6 * model.active_parameters + 12 * attended * context) * (4 / 3 if checkpointing else 1)


def training_seconds(
    model: Model, gpu: Gpu, gpus: int, work: Workload, checkpointing: bool, assumed: Assumptions
) -> float:
    """Seconds of one optimizer step on this many GPUs."""
    context = (work.prompt_tokens + work.mean_tokens) / 2
    flops = training_flops(model, work.trained_tokens, context, checkpointing)
    return flops / (gpus * gpu.flops * assumed.training_flops) + assumed.step_seconds


def decode_seconds(
    model: Model, gpu: Gpu, tensor_parallel: int, sequences: float, context: float, assumed: Assumptions
) -> float:
    """Seconds in which each of the sequences of a replica gets its next token.

    Args:
        sequences: at once; the more there are, the more of the experts are read.
        context: tokens that each attends to, on average.
    """
    idle = (1 - model.top_k / model.experts) ** sequences if model.experts else 0.0
    read = (
        model.width * (model.parameters - model.routed_parameters * idle)
        + sequences * context * model.kv_width * model.width
    )
    by_memory = read / (tensor_parallel * gpu.bandwidth * assumed.memory_bandwidth)
    flops = 2 * sequences * model.active_parameters
    by_arithmetic = flops / (tensor_parallel * gpu.flops * assumed.sampling_flops)
    return max(by_memory, by_arithmetic) + assumed.decode_seconds


def prefill_seconds(model: Model, gpu: Gpu, tensor_parallel: int, tokens: int, assumed: Assumptions) -> float:
    """Seconds until a prompt of this many tokens is read."""
    return 2 * tokens * model.active_parameters / (tensor_parallel * gpu.flops * assumed.sampling_flops)


def sequences_at_once(model: Model, gpu: Gpu, tensor_parallel: int, context: int, assumed: Assumptions) -> int:
    """Sequences of this many tokens whose caches fit beside the weights on a replica; 0 where the weights do not."""
    free = tensor_parallel * gpu.memory * assumed.memory - model.width * model.parameters
    each = max(1, context * model.kv_width * model.width)
    return max(0, int(free // each))


def transfer_seconds(model: Model, gpu: Gpu, learner_gpus: int, gpus: int, assumed: Assumptions) -> float:
    """Seconds in which published weights reach every replica: each gets all of them once.

    Ranks send their own shards at once, so the slower of what the learner sends and what one replica takes counts.
    """
    size = model.width * model.parameters
    rate = (gpu.link if gpus <= PER_MACHINE else gpu.network) * assumed.network
    return size / (min(learner_gpus, gpus - learner_gpus, PER_MACHINE) * rate)


def trajectory_bytes(model: Model, tokens: float, generation: GenerationSettings) -> float:
    """Bytes of a response on a stream: ids, log-probs, text, and what generation exports of the routers."""
    routed = sum(1 for layer in model.layers if layer.experts)
    if generation.router_export is RouterExport.NONE:
        return tokens * _PLAIN
    layers = min(generation.router_layers or routed, routed)
    ids = 1 if model.experts <= 256 else 2
    scores = 1 if generation.router_scores is ScoreDtype.UINT8 else 2
    width = model.top_k * (ids if generation.router_export is RouterExport.IDS else ids + scores)
    logits = 2 * model.experts if generation.router_export is RouterExport.FULL else 0
    which = layers if layers < routed else 0  # a byte each
    return tokens * (_PLAIN + layers * (width + logits) + which)
