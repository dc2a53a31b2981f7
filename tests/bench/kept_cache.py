"""What KV caches that running responses keep over new weights cost in log-probs, and spare in time (`keep_cache`).

The torch engine samples with the Countdown model without an end of sequence, while version follows version. `gap` is
the distance of a recorded log-prob from that of its version's own pass over the same tokens; `drift` that of this pass
from the one of the version before, to hold it against. Versions are those of a run (`--weights`), or random steps of
the size that AdamW's have: each entry moves by about the learning rate.
"""

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from routershift.trajectory import versions_of
from services.generation.engines.base import EngineSampling, Files
from services.generation.engines.torch import attention
from services.generation.engines.torch import batch as engine
from services.generation.engines.torch.model import OWN_ATTENTION, Policy, load_folder, prepare
from shared.errors import InvalidInputError
from shared.models.tensors import model_tensors
from tests.bench.timing import interleaved

_DEMO = Path(__file__).parents[2] / "deploy" / "recipes" / "countdown" / "model"
_PROMPT_TOKENS = 10
_END = frozenset[int]()
QUICK = {"rounds": 1, "responses": 4, "tokens": 32, "every": 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds")
    parser.add_argument("--responses", type=int, default=32, help="sampled at once")
    parser.add_argument("--tokens", type=int, default=512, help="of each response")
    parser.add_argument("--every", type=int, default=32, help="tokens from one version to the next")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="by which entries move with each version")
    parser.add_argument("--weights", type=Path, help="weights/ of a run with this model, for its versions in order")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes about a minute on one core."""
    if not 1 <= arguments.every < arguments.tokens:
        raise InvalidInputError(
            f"--every is {arguments.every}; it must be from 1 to --tokens less one: no version comes"
        )
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        policies = _policies(Path(folder), arguments)
    sampled: dict[str, engine.Batch] = {}

    def sample(policy: str) -> None:
        sampled[policy] = _sample(policies, arguments, keep_cache=policy == "keep_cache")

    timings = interleaved({name: partial(sample, name) for name in ("keep", "keep_cache")}, arguments.rounds)
    tokens = arguments.responses * arguments.tokens
    return {
        "ratio_cpu": timings.cpu("keep", "token", tokens)["ratio"]["keep_cache"]["median"],
        "cpu": timings.cpu("keep", "token", tokens),
        "gap": {name: _summary(_gaps(policies, batch)) for name, batch in sampled.items()},
        "drift": _summary(_drift(policies, sampled["keep"])),
        "versions": len(policies),
        "learning_rate": None if arguments.weights else arguments.learning_rate,
    }


def _policies(root: Path, arguments: argparse.Namespace) -> list[Policy]:
    """As many versions as `--tokens` has parts of `--every`, or as there are."""
    folder = root / "model"
    shutil.copytree(_DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    longest = _PROMPT_TOKENS + arguments.tokens
    (folder / "config.json").write_text(
        json.dumps(config | {"eos_token_id": config["vocab_size"], "max_position_embeddings": longest})
    )
    (folder / "generation_config.json").unlink()
    policies, shapes = [load_folder(folder, "cpu")], model_tensors(folder)
    for number, files in zip(range(1, arguments.tokens // arguments.every), _versions(root, arguments), strict=False):
        policies.append(asyncio.run(prepare(policies[0], shapes, Files(files))))
        sys.stderr.write(f"version {number}\r")
    return policies


def _versions(root: Path, arguments: argparse.Namespace) -> Iterator[Sequence[Path]]:
    """Files of version 1, 2 and so on."""
    if arguments.weights:
        folders = sorted(path for path in arguments.weights.iterdir() if any(path.glob("*.safetensors")))
        if not folders:
            raise InvalidInputError(
                f"--weights is {arguments.weights}; no version of weights there: name weights/ of a run"
            )
        yield from (sorted(path.glob("*.safetensors")) for path in folders)
        return
    torch.manual_seed(0)
    tensors = load_file(_DEMO / "model.safetensors")
    while True:
        tensors = {name: t + arguments.learning_rate * torch.randn_like(t) for name, t in tensors.items()}
        save_file(tensors, root / "next.safetensors")
        yield [root / "next.safetensors"]


@torch.inference_mode()
def _sample(policies: Sequence[Policy], arguments: argparse.Namespace, *, keep_cache: bool) -> engine.Batch:
    """All responses, still in the batch."""
    rng = np.random.default_rng(0)
    sampling = EngineSampling(1, 1.0, 1.0, 0, arguments.tokens + 1, None)  # one more: they end when they are read
    batch = engine.Batch(policies[0], 0, arguments.responses, _END)
    vocabulary = policies[0].model.config.vocab_size
    for index in range(arguments.responses):
        prompt = rng.integers(3, vocabulary, _PROMPT_TOKENS).tolist()
        batch.running.append(engine.Sequence(index, prompt, sampling, rng.random(arguments.tokens + 1)))
    batch.begin(0)
    for token in range(1, arguments.tokens):
        version, rest = divmod(token, arguments.every)
        if not rest and version < len(policies):
            batch.replace(policies[version], version, keep_cache=keep_cache)
        batch.step()
    return batch


def _gaps(policies: Sequence[Policy], batch: engine.Batch) -> NDArray[np.float64]:
    """[responses, tokens] nats."""
    recorded = np.stack([batch.completion(one, 0).logprobs for one in batch.running])
    own, _ = _passes(policies, batch)
    distances: NDArray[np.float64] = np.abs(recorded - own)
    return distances


def _drift(policies: Sequence[Policy], batch: engine.Batch) -> NDArray[np.float64]:
    """By how much each version has moved the log-probs of the tokens that it has drawn, in nats; not of the first."""
    own, before = _passes(policies, batch)
    distances: NDArray[np.float64] = np.abs(own - before)[~np.isnan(before)]
    return distances


@torch.inference_mode()
def _passes(policies: Sequence[Policy], batch: engine.Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probs [responses, tokens] by a pass of each token's version, and of the one before (NaN: there is none)."""
    rows = torch.tensor([one.prompt + one.tokens for one in batch.running])
    versions = np.stack([versions_of(batch.completion(one, 0).versions) for one in batch.running])
    own, before = np.full(versions.shape, np.nan), np.full(versions.shape, np.nan)
    for version, policy in enumerate(policies):
        policy.model.set_attn_implementation(OWN_ATTENTION)
        logits = policy.model(input_ids=rows[:, :-1], use_cache=False).logits[:, _PROMPT_TOKENS - 1 :]
        policy.model.set_attn_implementation(attention.NAME)
        logprobs = logits.log_softmax(-1).gather(-1, rows[:, _PROMPT_TOKENS:, None])[..., 0].double().numpy()
        own[versions == version] = logprobs[versions == version]
        before[versions == version + 1] = logprobs[versions == version + 1]
    return own, before


def _summary(distances: NDArray[np.float64]) -> dict[str, float]:
    return {"mean": float(distances.mean()), "p99": float(np.quantile(distances, 0.99)), "max": float(distances.max())}
