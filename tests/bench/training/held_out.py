"""Held-out accuracy of saved weights, measured in the same way whoever trained them.

The torch engine answers each problem with the same seeds for every version of every side, and the verifier judges the
texts. It runs when no side trains.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from routershift.trajectory import RouterExport
from services.curriculum.problems import Problem
from services.generation.engines.base import EngineOptions, EngineSampling, Files
from services.generation.engines.torch.engine import TorchEngine
from shared.models.tokenizer import load_tokenizer
from tests.bench.training.figures import Point, Saved

IsCorrect = Callable[[Problem, str], bool]


def curve(
    model: Path,
    saved: Sequence[Saved],
    problems: Sequence[Problem],
    is_correct: IsCorrect,
    *,
    samples: int,
    max_tokens: int,
    threads: int,
    until: float,
) -> list[Point]:
    """Accuracy (pass@1 at temperature 1) of one version after the other, up to the first that reaches `until`.

    Args:
        model: folder that training started from.
        samples: responses to each problem.
    """

    async def measure() -> list[Point]:
        tokenizer = load_tokenizer(model)
        options = EngineOptions(max_num_seqs=256, threads=threads, router_export=RouterExport.NONE)
        engine = TorchEngine(model, options)
        await engine.start()
        points: list[Point] = []
        try:
            for version in saved:
                await engine.update_weights(version.step, Files(version.files))
                answers = await asyncio.gather(
                    *(
                        engine.generate(
                            list(problem.token_ids) or tokenizer(problem.prompt)["input_ids"],
                            EngineSampling(samples, 1.0, 1.0, 0, max_tokens, seed=i * samples),
                        )
                        for i, problem in enumerate(problems)
                    )
                )
                right = [
                    is_correct(problem, tokenizer.decode(completion.token_ids.tolist(), skip_special_tokens=True))
                    for problem, completions in zip(problems, answers, strict=True)
                    for completion in completions
                ]
                points.append(Point(version.step, version.seconds, sum(right) / len(right)))
                if points[-1].accuracy >= until:
                    break
        finally:
            await engine.close()
        return points

    return asyncio.run(measure())
