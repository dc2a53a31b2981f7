"""TRL's side, in its own environment: trains with GRPOTrainer what a job says, and writes what it took.

python -m tests.bench.training.trl_script JOB RESULT
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.bench.timing import cpu_seconds
from tests.bench.training.judging import Judge


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Reads time and CPU-seconds after each step; what it takes to save weights is in neither."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._left_out = self._cpu_left_out = 0.0
        self.steps: list[dict[str, Any]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began, self._cpu_began = time.perf_counter(), cpu_seconds()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now, cpu = time.perf_counter(), cpu_seconds()
        files: list[str] = []
        if state.global_step % self._job["save_every"] == 0:
            folder = Path(self._job["folder"]) / f"v{state.global_step:08d}"
            kwargs["model"].save_pretrained(folder)
            files = sorted(map(str, folder.glob("*.safetensors")))
        self.steps.append(
            {
                "step": state.global_step,
                "seconds": now - self._began - self._left_out,
                "cpu_seconds": cpu - self._cpu_began - self._cpu_left_out,
                "files": files,
            }
        )
        self._left_out += time.perf_counter() - now
        self._cpu_left_out += cpu_seconds() - cpu


class _Rewards:
    """Judges responses, and counts those of groups with unequal rewards, which alone have an advantage."""

    __name__ = "rewards"  # TRL asks for it

    def __init__(self, job: dict[str, Any]) -> None:
        self._judge = Judge(job["verifiers"], job["verifier"])
        self._problems: list[dict[str, Any]] = job["problems"]
        self._samples: int = job["samples"]
        self.rollouts = self.trained = self.tokens = 0

    def __call__(
        self, completions: Sequence[Any], problem: Sequence[int], completion_ids: Sequence[Any], **_: Any
    ) -> list[float]:
        rewards = []
        for completion, index in zip(completions, problem, strict=True):
            text = completion if isinstance(completion, str) else completion[0]["content"]
            asked = self._problems[index]
            rewards.append(self._judge.verdict(asked["prompt"], text, asked["reference"]).reward)
        groups = [rewards[i : i + self._samples] for i in range(0, len(rewards), self._samples)]
        self.rollouts += len(rewards)
        self.trained += sum(len(group) for group in groups if min(group) != max(group))
        self.tokens += sum(map(len, completion_ids))
        return rewards


class _Lengths(LogitsProcessor):  # type: ignore[misc]
    """Every response ends at the length that belongs to its prompt, and not before."""

    def __init__(self, lengths: dict[tuple[int, ...], int], end: int, padding: int) -> None:
        self._lengths = lengths
        self._end = end
        self._padding = padding
        self._width: int | None = None

    def begin(self) -> None:
        """A new batch."""
        self._width = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._width is None:
            self._width = input_ids.shape[1]
            rows = [tuple(t for t in row if t != self._padding) for row in input_ids.tolist()]
            self._ends = torch.tensor([self._lengths[row] for row in rows], device=input_ids.device)
        drawn = input_ids.shape[1] - self._width
        last = drawn + 1 >= self._ends
        scores[:, self._end] = torch.where(last, 0.0, -torch.inf)
        rest = torch.arange(scores.shape[1], device=scores.device) != self._end
        return scores.masked_fill(last[:, None] & rest[None], -torch.inf)


def _fix_lengths(trainer: Any, job: dict[str, Any], clock: dict[str, float]) -> None:
    """Wraps generate() of the model, and times it."""
    tokenizer = trainer.processing_class
    lengths = {
        tuple(tokenizer(problem["prompt"])["input_ids"]): length
        for problem, length in zip(job["problems"], job["lengths"], strict=True)
    }
    processor = _Lengths(lengths, tokenizer.eos_token_id, tokenizer.pad_token_id)
    generate = trainer.model.generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        processor.begin()
        began = time.perf_counter()
        try:
            return generate(*args, logits_processor=LogitsProcessorList([processor]), **kwargs)
        finally:
            clock["generate_seconds"] += time.perf_counter() - began

    trainer.model.generate = timed


def _config(job: dict[str, Any], steps: int) -> GRPOConfig:
    batch = job["groups"] * job["samples"]
    return GRPOConfig(
        output_dir=job["folder"],
        max_steps=steps,
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=batch // job["micro_batch"],
        generation_batch_size=batch,
        num_generations=job["samples"],
        max_completion_length=job["max_tokens"],
        temperature=job["temperature"],
        shuffle_dataset=False,  # the order in which our curriculum has them
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=job["warmup_steps"],
        adam_beta1=job["beta1"],
        adam_beta2=job["beta2"],
        weight_decay=job["weight_decay"],
        max_grad_norm=job["max_grad_norm"],
        beta=0.0,
        use_cpu=True,
        bf16=job["bfloat16"],
        gradient_checkpointing=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
    )


def _train(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    asked = [problem["messages"] or problem["prompt"] for problem in job["problems"]]
    data = Dataset.from_dict({"prompt": asked, "problem": list(range(len(asked)))})
    rewards = _Rewards(job)

    def made(steps: int, *callbacks: TrainerCallback) -> GRPOTrainer:
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        return GRPOTrainer(
            model,
            reward_funcs=rewards,
            args=_config(job, steps),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[*callbacks],
        )

    # The first step of a process imports much. Ours has computed before its first prompt, so TRL may as well.
    made(1).train()
    rewards.rollouts = rewards.trained = rewards.tokens = 0
    clock, generation = _Clock(job), {"generate_seconds": 0.0}
    trainer = made(job["steps"], clock)
    if job["lengths"]:
        _fix_lengths(trainer, job, generation)
    trainer.train()
    counted = {name: getattr(rewards, name) for name in ("rollouts", "trained", "tokens")}
    return {"steps": clock.steps, **counted, **generation}


def _main(job: Path, result: Path) -> None:
    result.write_text(json.dumps(_train(json.loads(job.read_text()))))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
