"""Which GPUs train and which sample: the split whose slower side is fastest, among those that fit into memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from services.generation.settings import GenerationSettings
from services.learner.settings import LearnerSettings
from services.planner import memory, throughput
from services.planner.hardware import PER_MACHINE, Gpu
from services.planner.memory import Part
from services.planner.model import Model
from services.planner.simulation import Outcome, System, log_normal, simulate
from services.planner.throughput import Assumptions, Workload
from shared.errors import PreconditionError
from shared.sizes import in_words

DEVICE = "cuda"
_TENSOR_PARALLEL = (1, 2, 4, 8)
_SIMULATED = 8  # splits, of those that look best


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to divide, and what it is to do."""

    model: Model
    gpu: Gpu
    gpus: int
    work: Workload
    max_staleness: int
    tickets: int  # groups in flight
    learner: LearnerSettings
    generation: GenerationSettings
    trained: int | None  # parameters of adapters; None trains all weights
    stream_bandwidth: float  # bytes a second
    assumed: Assumptions

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response."""
        return self.work.prompt_tokens + self.work.max_tokens

    @property
    def room(self) -> float:
        """Bytes of a GPU that may be used."""
        return self.gpu.memory * self.assumed.memory


@dataclass(frozen=True, slots=True)
class Split:
    """One way to divide a cluster."""

    learner_gpus: int
    tensor_parallel: int  # GPUs of a replica
    replicas: int
    slots: int  # responses that a replica samples at once
    train_seconds: float  # of a step
    sample_seconds: float  # in which replicas sample what a step takes

    @property
    def step_seconds(self) -> float:
        """Where nothing waits for another; the simulation says how much does."""
        return max(self.train_seconds, self.sample_seconds)


def learner_parts(cluster: Cluster, gpus: int) -> list[Part]:
    """Memory of one learner rank, of this many."""
    return list(memory.learner(cluster.model, cluster.learner, gpus, cluster.longest, cluster.trained))


def generation_parts(cluster: Cluster, split: Split) -> list[Part]:
    """Memory of one GPU of a replica: its share of the weights, and caches in the rest."""
    vllm = {
        "tensor_parallel_size": split.tensor_parallel,
        "dtype": "auto",
        "gpu_memory_utilization": cluster.assumed.memory,
    }
    settings = GenerationSettings.model_validate({"engine": "vllm", "vllm": vllm})
    parts = list(memory.generation(cluster.model, settings, DEVICE))
    cache = int(cluster.room) - memory.on(DEVICE, parts)
    return [*parts, Part("generation", "KV cache", cache, DEVICE, "a smaller model, or more GPUs for a replica")]


def splits(cluster: Cluster) -> Iterator[Split]:
    """Every split that fits: learner and replicas on whole machines, where there is more than one."""
    unit = PER_MACHINE if cluster.gpus > PER_MACHINE else 1
    for learner_gpus in range(unit, cluster.gpus, unit):
        if not cluster.learner.mesh.fits(learner_gpus):
            continue
        if memory.on(DEVICE, learner_parts(cluster, learner_gpus)) > cluster.room:
            continue
        for size in _TENSOR_PARALLEL:
            replicas = (cluster.gpus - learner_gpus) // size
            fitting = throughput.sequences_at_once(
                cluster.model, cluster.gpu, size, cluster.work.prompt_tokens + cluster.work.mean_tokens, cluster.assumed
            )
            if replicas and fitting:
                yield _split(cluster, learner_gpus, size, replicas, fitting)


def best(cluster: Cluster, spread: float, steps: int) -> tuple[Split, Outcome]:
    """The fastest split, and what its simulation came to: of those that look best where nothing waits for another.

    Args:
        spread: of the lengths of responses; see `simulation.log_normal`.
        steps: that are simulated.

    Raises:
        PreconditionError: none fits; with the numbers, and what would.
    """
    found = sorted(splits(cluster), key=lambda split: (split.step_seconds, split.tensor_parallel))
    if not found:
        raise PreconditionError(_why_none_fits(cluster))
    tried = [(split, simulate(system(cluster, split, spread), steps)) for split in found[:_SIMULATED]]
    return min(tried, key=lambda pair: pair[1].seconds)


def _why_none_fits(cluster: Cluster) -> str:
    possible = range(1, max(2, cluster.gpus))
    most = max(filter(cluster.learner.mesh.fits, possible), default=possible[-1])
    parts = [part for part in learner_parts(cluster, most) if part.device == DEVICE]
    needed, largest = memory.on(DEVICE, parts), max(parts, key=lambda part: part.bytes)
    weights = cluster.model.width * cluster.model.parameters
    return (
        f"{cluster.gpus} x {cluster.gpu.name} are too few: a learner of {most} of them needs {in_words(needed)} on "
        f"each, the largest part {in_words(largest.bytes)} of {largest.what}, and a replica has {in_words(weights)} of "
        f"weights on up to {_TENSOR_PARALLEL[-1]}; one has {in_words(cluster.room)} to use. Take more GPUs, larger "
        "ones, learner.optimizer.offload, learner.lora.rank, or a smaller learner.micro_batch_tokens"
    )


def system(cluster: Cluster, split: Split, spread: float) -> System:
    """What is to be simulated of a split. Args: spread: see `simulation.log_normal`."""
    work, assumed = cluster.work, cluster.assumed
    context = work.prompt_tokens + work.mean_tokens / 2
    per_token = (split.train_seconds - assumed.step_seconds) / work.sampled_tokens
    transfer = throughput.transfer_seconds(cluster.model, cluster.gpu, split.learner_gpus, cluster.gpus, assumed)
    return System(
        groups=work.groups,
        n=work.n,
        max_staleness=cluster.max_staleness,
        tickets=cluster.tickets,
        replicas=split.replicas,
        slots=split.slots,
        decode_seconds=lambda sequences: throughput.decode_seconds(
            cluster.model, cluster.gpu, split.tensor_parallel, sequences, context, assumed
        ),
        prefill_seconds=throughput.prefill_seconds(
            cluster.model, cluster.gpu, split.tensor_parallel, work.prompt_tokens, assumed
        ),
        length=log_normal(work.mean_tokens, work.max_tokens, spread),
        reward_seconds=assumed.reward_seconds,
        train_seconds=lambda tokens: tokens * per_token + assumed.step_seconds,
        publish_seconds=transfer,
        load_seconds=transfer,
        token_bytes=throughput.trajectory_bytes(cluster.model, 1, cluster.generation),
        stream_bandwidth=cluster.stream_bandwidth,
        unused=assumed.unused,
    )


def _split(cluster: Cluster, learner_gpus: int, size: int, replicas: int, fitting: int) -> Split:
    model, gpu, work, assumed = cluster.model, cluster.gpu, cluster.work, cluster.assumed
    slots = min(fitting, ceil(cluster.tickets * work.n / replicas))
    context = work.prompt_tokens + work.mean_tokens / 2
    step = throughput.decode_seconds(model, gpu, size, slots, context, assumed)
    prefill = throughput.prefill_seconds(model, gpu, size, work.prompt_tokens, assumed)
    responses = work.responses / (1 - assumed.unused) / replicas
    sampling = responses * (work.mean_tokens * step / slots + prefill)
    training = throughput.training_seconds(
        model, gpu, learner_gpus, work, cluster.learner.activation_checkpointing, assumed
    )
    return Split(learner_gpus, size, replicas, slots, training, sampling)
