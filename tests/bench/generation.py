"""Response tokens per second through the gRPC service of generation, and of vLLM's own LLM.generate.

The same prompts and sampling, on the same machine in turns: text in; text and the log-prob of each sampled token out.
`ratio` is the service's speed over that of LLM.generate, median of paired rounds. LLM has a process of its own with the
settings of the service's engine, and no routers. The service exports routers into its own process (`export`), and a
second variant has them sent to the caller as well. The service cannot leave log-probs out, LLM.generate can: what it
gains by that is in `ratio_to_text_only`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from routershift.v1 import generation_pb2_grpc as gen_grpc
from services.curriculum.tasks.countdown import Countdown
from services.generation.engines.registry import make_engine
from services.generation.requests.validation import Requests
from services.generation.server import GenerationServicer
from services.generation.settings import GenerationSettings, Settings
from services.generation.weights.loader import WeightsLoader
from shared.clients import GenerationClient
from shared.rpc.server import Server
from shared.settings import RunSettings
from tests.bench.timing import Spread, interleaved

_REPOSITORY = Path(__file__).parents[2]
_DEMO = _REPOSITORY / "deploy" / "recipes" / "countdown" / "model"
_WARMUP = 1
QUICK = {"rounds": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=_DEMO, help="model folder")
    parser.add_argument("--prompts", type=int, default=64, help="requests of a round, all at once")
    parser.add_argument("--samples", type=int, default=8, help="responses to each")
    parser.add_argument("--max-tokens", type=int, default=24, help="longest response")
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds")
    parser.add_argument("--export", default="topk", help="generation.router_export of the service")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes two or three minutes; at best with a core for each of the service and its engine."""
    prompts = [problem.prompt for problem in Countdown(0).held_out(arguments.prompts)]
    work = {
        "model": str(arguments.model.resolve()),
        "prompts": prompts,
        "samples": arguments.samples,
        "max_tokens": arguments.max_tokens,
        "export": arguments.export,
    }
    sampling: Any = {"n": arguments.samples, "max_tokens": arguments.max_tokens, "temperature": 1.0}
    tokens: dict[str, list[int]] = {"grpc": [], "grpc_router": [], "direct": [], "text_only": []}
    with ExitStack() as stack:
        service, direct = (stack.enter_context(_Role(role, work)) for role in ("service", "direct"))
        runner = stack.enter_context(asyncio.Runner())
        address = service.ready["address"]

        async def ask(return_router: bool) -> int:
            async with GenerationClient(address, timeout=600) as client:
                answers = await asyncio.gather(
                    *(client.generate(prompt, return_router=return_router, **sampling) for prompt in prompts)
                )
            return sum(completion.token_ids.size for completions in answers for completion in completions)

        timings = interleaved(
            {
                "grpc": lambda: tokens["grpc"].append(runner.run(ask(False))),
                "grpc_router": lambda: tokens["grpc_router"].append(runner.run(ask(True))),
                "direct": lambda: tokens["direct"].append(direct.turn({"logprobs": 0})["tokens"]),
                "text_only": lambda: tokens["text_only"].append(direct.turn({})["tokens"]),
            },
            arguments.rounds,
            _WARMUP,
        )
    rates = {
        name: [count / seconds for count, seconds in zip(tokens[name][_WARMUP:], timings.seconds[name], strict=True)]
        for name in tokens
    }
    ratios = {
        name: Spread.of([a / b for a, b in zip(rates[ours], rates[theirs], strict=True)])
        for name, ours, theirs in (
            ("grpc", "grpc", "direct"),
            ("grpc_router", "grpc_router", "direct"),
            ("grpc_to_text_only", "grpc", "text_only"),
        )
    }
    return {
        "grpc_tokens_per_second": Spread.of(rates["grpc"]).median,
        "direct_tokens_per_second": Spread.of(rates["direct"]).median,
        "ratio": ratios["grpc"].median,
        "ratio_with_router": ratios["grpc_router"].median,
        "ratio_to_text_only": ratios["grpc_to_text_only"].median,
        "spread": {name: asdict(spread) for name, spread in ratios.items()},
        "cpu": timings.cpu("direct", "token", {name: counts[_WARMUP:] for name, counts in tokens.items()}),
        "prompts": arguments.prompts,
        "samples": arguments.samples,
    }


class _Role:
    """A process that plays one side: a line of JSON on its stdout for each on its stdin."""

    def __init__(self, role: str, work: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.generation", role, json.dumps(work)],
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> "_Role":
        self.ready = self.turn({})
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def turn(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _settings(work: dict[str, Any]) -> Settings:
    model = Path(work["model"])
    return Settings(
        run=RunSettings(id="bench", model=model), generation=GenerationSettings(router_export=work["export"])
    )


def _service(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """The service without its streams, which need a Redis and are not asked here."""
    settings = _settings(work)

    async def serve() -> None:
        engine, servicer, server = make_engine(settings), GenerationServicer(settings.generation), Server()
        gen_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc)
        port = await server.listen("127.0.0.1", 0, [])
        await engine.start()
        try:
            servicer.open(
                engine, Requests(settings.run.model_folder(), engine.info, 256), WeightsLoader(engine, Path())
            )
            await server.serving()
            await asyncio.to_thread(sys.stdin.readline)
            tell({"address": f"127.0.0.1:{port}"})
            await asyncio.to_thread(sys.stdin.read)
            await server.stop(0)
        finally:
            await engine.close()

    asyncio.run(serve())


def _direct(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    from services.generation.engines.vllm import launch

    os.environ |= launch._ENVIRONMENT | launch._EAGER | {"OMP_NUM_THREADS": "1"}
    from vllm import LLM, SamplingParams

    settings = _settings(work).generation
    llm = LLM(
        work["model"],
        dtype=settings.vllm.dtype,
        max_num_seqs=settings.max_num_seqs,
        kv_cache_memory_bytes=settings.vllm.kv_cache_bytes,
        enforce_eager=True,
        generation_config="vllm",
    )
    sys.stdin.readline()
    tell({})
    for asked in sys.stdin:
        sampling = SamplingParams(
            n=work["samples"], max_tokens=work["max_tokens"], temperature=1.0, **json.loads(asked)
        )
        outputs = llm.generate(work["prompts"], sampling, use_tqdm=False)
        tell({"tokens": sum(len(sample.token_ids) for output in outputs for sample in output.outputs)})


def _main() -> None:
    # The protocol has stdout to itself; whatever else is printed goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    role, work = sys.argv[1], json.loads(sys.argv[2])
    (_service if role == "service" else _direct)(work, tell)


if __name__ == "__main__":
    _main()
