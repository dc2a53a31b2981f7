"""Random models in the shape of a Qwen3-MoE, and rollouts that they could have recorded."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from routershift.routing.routers import require_layout
from routershift.trajectory import Completion, FinishReason, RouterTrace, Trajectory, VersionSpan
from services.learner.data.batch import Group, Sample

GROUP = 4  # responses to a prompt
_SEED = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, and what a training step reads."""

    hidden_size: int
    num_hidden_layers: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    sequence_tokens: int  # of the longest prompt and response
    micro_batch_tokens: int
    step_tokens: int  # about; whole groups of responses come near it

    def with_changes(self, **changes: int | None) -> "Shape":
        """None changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @property
    def config(self) -> Qwen3MoeConfig:
        ours = {"sequence_tokens", "micro_batch_tokens", "step_tokens"}
        own = {name: value for name, value in asdict(self).items() if name not in ours}
        return Qwen3MoeConfig(norm_topk_prob=True, max_position_embeddings=self.sequence_tokens, **own)


SHAPES = {
    "tiny": Shape(
        hidden_size=64,
        num_hidden_layers=2,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=64,
        sequence_tokens=64,
        micro_batch_tokens=128,
        step_tokens=192,
    ),
    # 115 million parameters: the largest that two cores step through in seconds.
    "qwen3-moe-115m": Shape(
        hidden_size=512,
        num_hidden_layers=8,
        num_experts=64,
        num_experts_per_tok=8,
        moe_intermediate_size=128,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=8192,
        sequence_tokens=512,
        micro_batch_tokens=1536,
        step_tokens=3072,
    ),
    # The first four layers of Qwen3-30B-A3B, with its vocabulary: 3.1 billion parameters.
    "qwen3-30b-a3b-layers4": Shape(
        hidden_size=2048,
        num_hidden_layers=4,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        vocab_size=151936,
        sequence_tokens=4096,
        micro_batch_tokens=4096,
        step_tokens=24576,
    ),
}
DEFAULT_SHAPE = "qwen3-moe-115m"


def write_model(shape: Shape, folder: Path, device: torch.device) -> int:
    """A random model without a tokenizer; gives the number of its parameters."""
    torch.manual_seed(_SEED)
    with device:
        model = Qwen3MoeForCausalLM(shape.config)
    model.save_pretrained(folder)
    return int(model.num_parameters())


def rollouts(shape: Shape, folder: Path, device: torch.device, dtype: torch.dtype) -> list[Group]:
    """Groups of about `shape.step_tokens` tokens in all, recorded by the model in `folder` in one precision.

    A prompt is a quarter of the longest sequence, a response between one and three quarters. All are random.
    """
    rng = np.random.default_rng(_SEED)
    prompt = shape.sequence_tokens // 4
    groups = max(1, round(shape.step_tokens / (3 * prompt * GROUP)))
    lengths = rng.integers(prompt, 3 * prompt, size=groups * GROUP, endpoint=True)
    return recorded(shape, folder, device, dtype, prompt, lengths.tolist(), rng)


def recorded(
    shape: Shape,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    prompt: int,
    lengths: Sequence[int],
    rng: np.random.Generator | None = None,
) -> list[Group]:
    """Groups of responses of these lengths, as many as `GROUP` divides, recorded by the model in `folder`."""
    rng, groups = rng or np.random.default_rng(_SEED), len(lengths) // GROUP
    ids = rng.integers(0, shape.vocab_size, size=(groups, GROUP, shape.sequence_tokens), dtype=np.int32)
    ids[:, :, :prompt] = ids[:, :1, :prompt]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    rows = torch.from_numpy(ids.reshape(groups * GROUP, -1).astype(np.int64)).to(device)
    chunk = max(1, shape.micro_batch_tokens // shape.sequence_tokens)
    completions: list[Completion] = []
    for i in range(0, len(lengths), chunk):
        part = lengths[i : i + chunk]
        completions += _recorded(model, rows[i : i + chunk, : prompt + max(part)], prompt, part)
    samples = [
        Sample(ids.reshape(groups * GROUP, -1)[i, :prompt], Trajectory(completion), float(rng.random()))
        for i, completion in enumerate(completions)
    ]
    return [Group(f"group-{i}", tuple(samples[i * GROUP : (i + 1) * GROUP])) for i in range(groups)]


@torch.no_grad()
def _recorded(model: PreTrainedModel, rows: Tensor, prompt: int, lengths: Sequence[int]) -> Iterator[Completion]:
    """What rollouts of these tokens [N, W] record, each cut to its length after the prompt. Nothing sees ahead."""
    layout = require_layout(model)
    output = model(rows, output_router_logits=True, use_cache=False)
    responses = slice(prompt - 1, rows.shape[1] - 1)
    logprobs = output.logits[:, responses].float().log_softmax(-1).gather(2, rows[:, prompt:, None])[..., 0]
    scores = torch.stack([logits.float().log_softmax(-1) for logits in output.router_logits], dim=1)
    top_scores, experts = scores.view(*rows.shape, *scores.shape[1:])[:, responses].topk(layout.top_k, dim=-1)
    for i, length in enumerate(lengths):
        yield Completion(
            index=i,
            token_ids=rows[i, prompt : prompt + length].cpu().numpy().astype(np.int32),
            logprobs=logprobs[i, :length].cpu().numpy(),
            versions=(VersionSpan(0, length),),
            finish_reason=FinishReason.LENGTH,
            router_trace=RouterTrace(
                layout,
                experts[i, :length].cpu().numpy().astype(layout.id_dtype),
                top_scores[i, :length].cpu().numpy().astype(np.float16),
            ),
        )
