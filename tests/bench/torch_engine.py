"""Response tokens per second of the torch engine, with router export on, and of transformers' own generate().

Same prompts, sampling, batch and threads, in one process; `ratio` is ours over theirs, median of paired rounds.
generate() takes the prompts in batches of as many sequences as the engine has slots, and records no routes. In
`demo` responses end where the model ends them, so some of a batch wait for the longest; in `demo_equal` and `l8e32`
all are of one length, and nobody waits.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.utils import logging

from routershift.trajectory import RouterExport
from services.generation.engines.base import EngineOptions, EngineSampling
from services.generation.engines.torch.engine import TorchEngine
from tests.bench.timing import Spread, interleaved

_DEMO = Path(__file__).parents[2] / "deploy" / "recipes" / "countdown" / "model"
_L8E32: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128,
    "num_hidden_layers": 8, "num_experts": 32, "num_experts_per_tok": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "norm_topk_prob": True, "max_position_embeddings": 256,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Work:
    """What both sides sample."""

    folder: Path
    prompts: list[list[int]]
    samples: int  # of each prompt
    max_tokens: int
    slots: int


QUICK = {"rounds": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds of each workload")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", default="cpu", help="torch device of both sides")
    parser.add_argument("--router-export", type=RouterExport, default=RouterExport.TOPK, help="none, ids, topk or full")
    parser.add_argument("--only", action="append", help="a workload; all without it")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes about a minute and a half on one core."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # an end of sequence beyond the vocabulary is what it should be
    with TemporaryDirectory() as temporary:
        works = _works(Path(temporary))
        found = {name: _compare(name, works[name], arguments) for name in arguments.only or works}
    return {
        "ratio": {name: spread["ratio"].median for name, (spread, _) in found.items()},
        "spread": {name: asdict(spread["ratio"]) for name, (spread, _) in found.items()},
        "cpu": {name: cpu for name, (_, cpu) in found.items()},
        "tokens_per_second": {
            name: {side: spread[side].median for side in ("engine", "generate")} for name, (spread, _) in found.items()
        },
        "device": arguments.device,
        "threads": arguments.threads,
        "router_export": arguments.router_export,
    }


def _works(root: Path) -> dict[str, _Work]:
    rng = random.Random(0)
    shutil.copytree(_DEMO, root / "demo_equal")
    _endless(root / "demo_equal")
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**_L8E32)).save_pretrained(root / "l8e32")
    _endless(root / "l8e32")

    def prompts(count: int, shortest: int, longest: int, vocabulary: int) -> list[list[int]]:
        return [[rng.randrange(3, vocabulary) for _ in range(rng.randint(shortest, longest))] for _ in range(count)]

    short = prompts(64, 10, 16, 23)
    return {
        "demo": _Work(_DEMO, short, 8, 24, 128),
        "demo_equal": _Work(root / "demo_equal", short, 8, 24, 128),
        "l8e32": _Work(root / "l8e32", prompts(8, 24, 48, _L8E32["vocab_size"]), 4, 48, 32),
    }


def _endless(folder: Path) -> None:
    """No token of the vocabulary ends a response."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": config["vocab_size"]}))
    (folder / "generation_config.json").unlink()


def _compare(name: str, work: _Work, arguments: argparse.Namespace) -> tuple[dict[str, Spread], dict[str, Any]]:
    sys.stderr.write(f"{name}: {len(work.prompts) * work.samples} responses a round\n")
    options = EngineOptions(max_num_seqs=work.slots, threads=arguments.threads, router_export=arguments.router_export)
    engine = TorchEngine(work.folder, options, device=arguments.device)
    model = AutoModelForCausalLM.from_pretrained(work.folder, dtype=torch.float32).to(arguments.device).eval()
    tokens: dict[str, list[int]] = {"engine": [], "generate": []}
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:
            timings = interleaved(
                {
                    "engine": lambda: tokens["engine"].append(runner.run(_engine(engine, work))),
                    "generate": lambda: tokens["generate"].append(_generate(model, work)),
                },
                arguments.rounds,
            )
        finally:
            runner.run(engine.close())
    rates = {
        side: [n / s for n, s in zip(counts[-arguments.rounds :], timings.seconds[side], strict=True)]
        for side, counts in tokens.items()
    }
    ratio = Spread.of([ours / theirs for ours, theirs in zip(rates["engine"], rates["generate"], strict=True)])
    return {"ratio": ratio, **{side: Spread.of(values) for side, values in rates.items()}}, timings.cpu(
        "generate", "token", {side: counts[-arguments.rounds :] for side, counts in tokens.items()}
    )


async def _engine(engine: TorchEngine, work: _Work) -> int:
    """Response tokens."""
    sampling = EngineSampling(work.samples, 1.0, 1.0, 0, work.max_tokens, None)
    groups = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in work.prompts))
    return sum(len(sample.token_ids) for samples in groups for sample in samples)


@torch.inference_mode()
def _generate(model: Any, work: _Work) -> int:
    """Response tokens; what follows an end is padding."""
    rows = [prompt for prompt in work.prompts for _ in range(work.samples)]
    counted = 0
    for first in range(0, len(rows), work.slots):
        batch = rows[first : first + work.slots]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=model.device)
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=work.max_tokens, pad_token_id=0,
        )[:, width:]  # fmt: skip
        ended = (output == model.config.eos_token_id).cumsum(-1)
        counted += int((ended.cumsum(-1) <= 1).sum())
    return counted
