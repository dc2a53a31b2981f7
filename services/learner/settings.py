"""Settings of the learner: the table [learner]."""

from collections.abc import Iterable
from operator import attrgetter
from typing import Literal, Self

from pydantic import Field, model_validator

from routershift.algorithms.choices import AdvantageKind, Aggregation, Application, CorrectionKind, Proximal
from routershift.algorithms.presets import Preset, preset_of, refusals
from routershift.routing.choices import NEEDS_ALL_LAYERS, NEEDS_EXACT_SCORES, LayerAggregation, MismatchBaseline, Replay
from services.learner.checkpointing.settings import CheckpointSettings, TransferSettings
from services.learner.distributed.settings import MeshSettings, ParallelSettings
from services.learner.model.settings import OptimizerSettings
from shared.settings import BaseSettings, ServerSettings
from shared.table import Table

Overlong = Literal["train", "mask", "drop"]
RouterPrecision = Literal["float32", "float64"]
AttnImplementation = Literal["auto", "segments", "flash_attention_2", "flash_attention_3", "masked"]


class RouterShiftSettings(Table):
    """The router shift factor gamma, which multiplies the ratio of each token (RSPO, arXiv 2510.23027)."""

    enabled: bool | None = Field(None, description="multiply ratios by gamma; default: the algorithm's, true in rspo")
    gamma_min: float = Field(0.8, gt=0, le=1, description="lower bound of the router shift ratio gamma")
    layer_aggregation: LayerAggregation = Field(
        "mean", description="gamma from the layers' shifts: mean of their logarithms, or product of their factors"
    )
    apply: Application = Field("before_clip", description="multiply the ratio by gamma before or after clipping it")
    mismatch_baseline: MismatchBaseline = Field(
        "none", description="subtract: do not count as shift what the two engines disagree on for the same weights"
    )


class CorrectionSettings(Table):
    """Importance-sampling correction for the difference between the learner's policy and the sampler's."""

    kind: CorrectionKind = Field(
        "none", description="none, truncate (TIS), mask (IcePop, by token) or sequence_mask (by response)"
    )
    low: float = Field(0.5, gt=0, lt=1, description="ratio below which mask and sequence_mask drop")
    high: float | None = Field(
        None, gt=1, description="ratio above which it is truncated or dropped; default: 2 for truncate, 5 for masks"
    )


class LoraSettings(Table):
    """Low-rank adapters, trained in place of the weights and merged into them where they are published."""

    rank: int = Field(0, ge=0, description="rank of the adapters, best a multiple of 8; 0: train the weights")
    alpha: float = Field(16.0, gt=0, description="scale of the adapters, divided by the rank")
    targets: Literal["attention", "experts", "all"] = Field(
        "all", description="what gets adapters: attention, experts (every feed-forward weight) or all; routers never do"
    )


class CollapseSettings(Table):
    """Detection of a collapse of the reward."""

    window: int = Field(0, ge=0, description="batches in the running mean of the reward; 0: no detection")
    fraction: float = Field(0.5, gt=0, lt=1, description="share of its best value that the running mean may lose")
    pause: bool = Field(False, description="pause training on a collapse, until a person resumes it")


class SampleSettings(Table):
    """Samples kept for people to read, in samples/ of the run's folder, with what is known of each token."""

    groups: int = Field(2, ge=0, description="groups of each step that are kept, chosen at random; 0: none")
    dropped: int = Field(
        1, ge=0, description="groups kept of those that were dropped, for each reason, while a step was collected"
    )
    max_bytes: int = Field(
        256 << 20, ge=1 << 20, description="bytes of all of them, above which the oldest steps are removed"
    )

    @property
    def are_kept(self) -> bool:
        return self.groups + self.dropped > 0


class LearnerSettings(ServerSettings):
    """What the learner does with a batch. How many batches of how many groups is in [run]."""

    port: int = Field(50053, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9103, ge=0, le=65535, description="Prometheus port; 0 takes a free one")

    algorithm: str = Field(
        "rspo",
        description="preset of objective, advantage, aggregation, clipping and router shift: rspo, gmpo, grpo, dapo, "
        "dr_grpo, gspo, cispo, dppo, dppo_kl, reinforce, or an objective that a package adds",
    )
    advantage: AdvantageKind | None = Field(None, description="how rewards become advantages; default: the algorithm's")
    turn_advantages: bool = Field(
        False,
        description="whether each turn of an episode has an advantage of its own, by what was earned from it on, and "
        "counts as a response in objective and averages; default: all tokens have that of the episode",
    )
    aggregation: Aggregation | None = Field(
        None, description="how the loss is averaged over tokens and responses; default: the algorithm's"
    )
    clip_low: float | None = Field(
        None,
        gt=0,
        description="how far the ratio may fall before it is clipped (gmpo, rspo: its logarithm; dppo, dppo_kl: the "
        "divergence above which a token is masked); default: the algorithm's",
    )
    clip_high: float | None = Field(
        None, gt=0, description="how far it may rise before it is clipped; default: the algorithm's"
    )
    proximal: Proximal = Field(
        "behaviour",
        description="denominator of the ratio: the sampler's log-probs, or the learner's own recomputed before the "
        "first update (decoupled PPO)",
    )
    correction: CorrectionSettings = CorrectionSettings()
    router_shift: RouterShiftSettings = RouterShiftSettings()
    routing_replay: Replay = Field(
        "none",
        description="experts in the training forward: live, r2 (as before the update), r3 (as the sampler's) or "
        "r3_weights (with the sampler's combine weights too: routers have no gradient through replayed tokens)",
    )
    freeze_router: bool = Field(False, description="train all weights but those of the routers, which stay as they are")
    kl_coefficient: float = Field(0.0, ge=0, description="weight of the KL divergence from the initial model")
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    overlong: Overlong = Field(
        "train",
        description="responses and episodes that were cut (finish reason length): train on them as on others; mask: "
        "none of their tokens is trained on, and their rewards count in their group; drop: nor do their rewards count",
    )
    overlong_buffer_tokens: int = Field(
        0, ge=0, description="tokens before rollout.max_tokens over which the reward falls by up to 1; 0: never"
    )

    epochs: int = Field(1, ge=1, description="passes over a batch")
    minibatches: int = Field(1, ge=1, description="optimizer updates in a pass, each on a share of the groups")
    optimizer: OptimizerSettings = OptimizerSettings()
    lora: LoraSettings = LoraSettings()

    micro_batch_tokens: int = Field(
        16384, ge=1, description="tokens in a forward pass, of all ranks of mesh.context together; at least a response"
    )
    head_chunk_bytes: int = Field(
        128 << 20,
        ge=1,
        description="bytes of the float32 logits that a forward pass has at a time; more response tokens are done in "
        "chunks, whose logits the backward pass computes again",
    )
    attn_implementation: AttnImplementation = Field(
        "auto",
        description="how sequences of a pass attend to themselves alone: segments (a call for each length), "
        "flash_attention_2 or flash_attention_3 (on a GPU, in bfloat16), or masked (rows of one width, with a mask of "
        "all pairs of tokens); auto: masked if a model needs it, else flash attention if it can be had, else segments",
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="forward and backward pass; master weights, gradients and AdamW stay float32; frozen weights are "
        "held as the model folder has them where the pass is in bfloat16",
    )
    router_precision: RouterPrecision | None = Field(
        None,
        description="of the routers' forward and backward pass, on their master weights: float32 or float64; default: "
        "that of precision",
    )
    device: str = Field("cpu", description="torch device that trains, such as cpu or cuda")
    threads: int = Field(1, ge=1, description="CPU threads of each process")
    parallel: ParallelSettings = ParallelSettings()
    mesh: MeshSettings = MeshSettings()

    checkpoints: CheckpointSettings = CheckpointSettings()
    transfer: TransferSettings = TransferSettings()
    collapse: CollapseSettings = CollapseSettings()
    samples: SampleSettings = SampleSettings()

    @property
    def preset(self) -> Preset:
        return preset_of(self.algorithm)

    @property
    def uses_router_shift(self) -> bool:
        enabled = self.router_shift.enabled
        return self.preset.router_shift if enabled is None else enabled

    @property
    def uses_traces(self) -> bool:
        """Whether rollouts must bring what their routers did."""
        return self.uses_router_shift or self.routing_replay in ("r3", "r3_weights")

    @property
    def needs_exact_scores(self) -> str | None:
        """The setting, and its value, that needs router scores in float16; None where none does."""
        return self._first_of(NEEDS_EXACT_SCORES)

    @property
    def needs_all_layers(self) -> str | None:
        """The setting, and its value, that needs the routes of all layers; None where none does."""
        return self._first_of(NEEDS_ALL_LAYERS)

    def _first_of(self, choices: Iterable[tuple[str, str]]) -> str | None:
        return next((f"{name} {value}" for name, value in choices if attrgetter(name)(self) == value), None)

    @property
    def clip_range(self) -> tuple[float, float]:
        """(low, high)"""
        return self.clip_low or self.preset.clip_low, self.clip_high or self.preset.clip_high

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        found = refusals(
            self.algorithm,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            router_shift=self.router_shift.enabled,
            proximal=self.proximal,
            correction=self.correction.kind,
            replays_own_routes=self.routing_replay == "r2",
        )
        if self.router_shift.mismatch_baseline == "subtract" and not self.uses_router_shift:
            found.append(
                "router_shift.mismatch_baseline corrects the router shift factor; set router_shift.enabled, or "
                "mismatch_baseline none"
            )
        if self.router_precision == self.precision:
            found.append("router_precision is float32, as precision is; leave it out, or use float64")
        if self.optimizer.offload == "masters" and self.precision != "bfloat16":
            found.append(
                f"optimizer.offload is 'masters' and precision {self.precision}: the pass computes with the masters "
                "themselves; set precision bfloat16, or optimizer.offload moments"
            )
        if self.optimizer.offload == "masters" and self.lora.rank:
            found.append(
                f"optimizer.offload is 'masters' and lora.rank {self.lora.rank}: the weights are frozen and have no "
                "masters, and those of adapters are small; set optimizer.offload none"
            )
        if self.mesh.expert > 1 and self.lora.rank and self.lora.targets != "attention":
            found.append(
                f"lora.targets is {self.lora.targets!r} and mesh.expert {self.mesh.expert}: peft interleaves the "
                "factors of all experts in one matrix, which cannot be divided by experts; set lora.targets attention, "
                "or mesh.expert 1"
            )
        if found:
            raise ValueError("; ".join(found))
        if self.parallel.processes > 1:  # of one process, torchrun may start several
            self.mesh.over(self.parallel.processes)
        return self


class Settings(BaseSettings):
    learner: LearnerSettings = LearnerSettings()

    @model_validator(mode="after")
    def _penalty_can_be_avoided(self) -> Self:
        buffer, longest = self.learner.overlong_buffer_tokens, self.rollout.max_tokens
        if buffer > longest:
            raise ValueError(
                f"learner.overlong_buffer_tokens is {buffer}; it must be at most rollout.max_tokens, which is {longest}"
            )
        return self
