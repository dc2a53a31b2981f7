"""The head of a large vocabulary: memory and time in chunks, and with all logits at once."""

import argparse
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from services.learner.model.head import chunked_logprobs, whole_logprobs
from services.learner.settings import LearnerSettings
from tests.bench.memory import peak_bytes
from tests.bench.timing import interleaved

VOCABULARIES = (151_936, 248_320)  # of Qwen3 and of Qwen3.5
TOKENS = 8_192
_HIDDEN = 64  # small, so that memory is that of logits, and time is that of everything but the matrix products
_PLAIN_TOKENS = 512  # with all logits at once; memory grows with the tokens
_TIMED_CHUNKS = 3  # more than one, so that logits are computed twice


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """For each vocabulary: bytes for each token and entry of the vocabulary, and speed over that of the plain head."""
    found = {}
    for vocabulary in VOCABULARIES:
        head = _Head(vocabulary, torch.device(arguments.device), getattr(torch, arguments.dtype))
        most = arguments.head_tokens
        plain, timed = min(_PLAIN_TOKENS, most), min(_TIMED_CHUNKS * head.chunk_tokens, most)
        size = peak_bytes(partial(head.chunked, most), head.device, 0) / (most * vocabulary)
        size_plain = peak_bytes(partial(head.plain, plain), head.device, 0) / (plain * vocabulary)
        turns = {"chunked": partial(head.chunked, timed), "plain": partial(head.plain, timed)}
        timings = interleaved(turns, arguments.pairs)
        ratio = timings.ratio("plain", "chunked")  # above 1 where the plain one is faster: seconds over its seconds
        sys.stderr.write(f"head of {vocabulary}: {size:.2f} bytes a token and entry, plain {size_plain:.2f}\n")
        found[str(vocabulary)] = {
            "bytes_per_token_entry": size,
            "bytes_per_token_entry_plain": size_plain,
            "seconds_ratio_to_plain": ratio.median,
            "seconds_ratio_spread": (ratio.min, ratio.max),
            "cpu": timings.cpu("plain", "token", timed),
            "tokens": {"chunked": most, "plain": plain, "timed": timed, "chunk": head.chunk_tokens},
        }
    return found


class _Head:
    """Log-probs of random targets and their gradients, once in each way."""

    def __init__(self, vocabulary: int, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.chunk_tokens = LearnerSettings().head_chunk_bytes // (4 * vocabulary)
        self._weight = torch.randn(vocabulary, _HIDDEN, device=device, dtype=dtype, requires_grad=True)

    def chunked(self, tokens: int) -> None:
        hidden, targets = self._inputs(tokens)
        self._learn(chunked_logprobs(hidden, self._weight, None, targets, 1.0, self.chunk_tokens, False)[0])

    def plain(self, tokens: int) -> None:
        hidden, targets = self._inputs(tokens)
        self._learn(whole_logprobs(linear(hidden, self._weight).float(), targets, False)[0])

    def _inputs(self, tokens: int) -> tuple[Tensor, Tensor]:
        weight = self._weight
        hidden = torch.randn(tokens, _HIDDEN, device=self.device, dtype=weight.dtype, requires_grad=True)
        return hidden, torch.randint(weight.shape[0], (tokens,), device=self.device)

    def _learn(self, logprobs: Tensor) -> None:
        logprobs.sum().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._weight.grad = None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
