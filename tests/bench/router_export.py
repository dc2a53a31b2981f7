"""What the export of router scores costs the vLLM engine in tokens per second, by export mode.

One engine for each mode, all alive at once, sample the same responses from the same seeds in turns.
"""

import argparse
import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from routershift.trajectory import Completion, RouterExport
from services.cli.commands.bench import REPOSITORY
from services.generation.engines.base import EngineOptions, EngineSampling
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.settings import VllmSettings
from tests.bench.timing import interleaved

MODES = {"off": RouterExport.NONE, "ids": RouterExport.IDS, "topk": RouterExport.TOPK, "full": RouterExport.FULL}
DEMO = REPOSITORY / "deploy" / "recipes" / "countdown" / "model"
PROMPT = [3, 4, 5, 6, 7, 8, 9, 10]
SAMPLES = 8  # of each prompt
QUICK = {"rounds": 2, "prompts": 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=10, help="turns of each mode that count")
    parser.add_argument("--prompts", type=int, default=32, help="prompts in one turn, of 8 samples each")
    parser.add_argument("--max-tokens", type=int, default=40, help="longest response")
    parser.add_argument("--sequences", type=int, default=64, help="sequences in one batch")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    models, ratios, spreads, sizes = {}, {}, {}, {}
    with TemporaryDirectory() as folder:
        for name, model in {"demo": DEMO, "l8e32": save_l8e32(Path(folder))}.items():
            with asyncio.Runner() as runner:
                models[name], ratios[name], spreads[name], sizes[name] = _measure(runner, model, arguments)
    return {
        "models": models,
        "topk_over_off": ratios,
        "spreads": spreads,
        "bytes_per_token": sizes,
        "rounds": arguments.rounds,
        "sequences": arguments.sequences,
    }


def save_l8e32(folder: Path) -> Path:
    """A random model of 8 layers with 32 experts, 4 of them activated for each token."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        max_position_embeddings=256,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


def _measure(
    runner: asyncio.Runner, model: Path, arguments: argparse.Namespace
) -> tuple[dict[str, float], float, dict[str, Any], dict[str, float]]:
    """Tokens per second by mode, speed with topk over that with none, the spreads of both, bytes per token by mode."""
    engines = {
        name: VllmEngine(model, EngineOptions(max_num_seqs=arguments.sequences, router_export=mode), VllmSettings())
        for name, mode in MODES.items()
    }
    latest: dict[str, list[Completion]] = {}

    async def sample(name: str) -> None:
        sampling = (
            EngineSampling(SAMPLES, 1.0, 1.0, 0, arguments.max_tokens, seed=SAMPLES * i)
            for i in range(arguments.prompts)
        )
        groups = await asyncio.gather(*(engines[name].generate(PROMPT, one) for one in sampling))
        latest[name] = [completion for group in groups for completion in group]

    def turn(name: str) -> Callable[[], None]:
        return lambda: runner.run(sample(name))

    try:
        for engine in engines.values():
            runner.run(engine.start())
        timings = interleaved({name: turn(name) for name in engines}, arguments.rounds)
    finally:
        for engine in engines.values():
            runner.run(engine.close())
    counts = {name: sum(len(completion.token_ids) for completion in done) for name, done in latest.items()}
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"the modes sampled different responses from the same seeds: {counts} tokens")
    rates = {name: timings.rate(name, counts[name]) for name in engines}
    ratios = {name: timings.ratio(name, "off") for name in engines if name != "off"}
    sizes = {
        name: sum(completion.router_trace.nbytes for completion in done if completion.router_trace) / counts[name]
        for name, done in latest.items()
        if name != "off"
    }
    spreads = {
        "tokens_per_second": {name: asdict(rate) for name, rate in rates.items()},
        "over_off": {name: asdict(ratio) for name, ratio in ratios.items()},
        "cpu": timings.cpu("off", "token", counts["off"]),
    }
    return {name: rate.median for name, rate in rates.items()}, ratios["topk"].median, spreads, sizes
