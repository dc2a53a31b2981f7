"""Continuous batching for the torch engine: steps of all running sequences at once, which join and leave between them.

A sequence under way has a slot of `torch_cache`, which is its index in the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from routershift.trajectory import Completion, FinishReason, TopLogprobs, spans_between
from services.generation.engines.base import EngineSampling
from services.generation.engines.stopping import StopChecker
from services.generation.engines.torch.attention import attending, blocks_of
from services.generation.engines.torch.cache import Records, SlotCache
from services.generation.engines.torch.model import Policy
from services.generation.engines.torch.sampling import Drawn, Sampler

# Padded tokens of one prefill pass: bounds its memory.
_PREFILL_TOKENS = 8192


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample under way. Its newest token is not in the KV cache yet; the next step feeds it."""

    index: int
    prompt: list[int]
    sampling: EngineSampling
    uniforms: NDArray[np.float64]  # [max_tokens] in [0, 1): one per token, so a sample never depends on its neighbours
    stop: StopChecker | None = None  # None: no stop strings
    slot: int = 0  # means nothing before the first token
    finish_reason: FinishReason | None = None
    tokens: list[int] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)  # a version and the first token drawn from it
    top_ids: list[NDArray[np.int32]] = field(default_factory=list)  # each [sampling.logprobs]
    top_logprobs: list[NDArray[np.float32]] = field(default_factory=list)  # each [sampling.logprobs]

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens whose keys and values the cache holds before the next step."""
        return (*self.prompt, *self.tokens[:-1])

    def take(self, token: int, version: int, ends: frozenset[int]) -> None:
        """Appends a token drawn from `version`, and ends the sample where it is one of `ends` or a rule says so."""
        if not self.starts or self.starts[-1][0] != version:
            self.starts.append((version, len(self.tokens)))
        self.tokens.append(token)
        stopped = self.stop is not None and self.stop.feed(token)
        if stopped or token in ends or token in self.sampling.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.tokens) == self.sampling.max_tokens:
            self.finish_reason = FinishReason.LENGTH


class Batch:
    """The running sequences of one policy. Not safe for threads; runs under `torch.inference_mode`."""

    def __init__(self, policy: Policy, version: int, slots: int, stop_ids: frozenset[int]) -> None:
        self.policy = policy
        self.version = version
        self.running: list[Sequence] = []
        self._slots = slots
        self._stop_ids = stop_ids
        self._cache = SlotCache(slots)
        self._records = Records(slots, policy.layout, policy.export)
        self._sampler: Sampler | None = None  # of all that run; None: they have changed

    @property
    def free(self) -> int:
        return self._slots - len(self.running)

    def begin(self, first: int) -> list[Sequence]:
        """Prefills the sequences in slots `first` and up, and draws the first token of each."""
        self._sampler = None
        begun = []
        for slot in range(first, len(self.running)):
            self.running[slot].slot = slot
        for slots in self._chunks(first):
            sequences = [self.running[slot] for slot in slots]
            sampler = Sampler([s.sampling for s in sequences], self.policy.device)
            begun += self._draw(sequences, sampler, *self._prefill(slots))
        return begun

    def step(self) -> list[Sequence]:
        """Draws the next token of all running sequences in one pass."""
        device = self.policy.device
        count = len(self.running)
        lengths = [len(s.prompt) + len(s.tokens) for s in self.running]
        at = torch.tensor(lengths, device=device) - 1
        tokens = torch.tensor([[s.tokens[-1]] for s in self.running], device=device)
        # A mask hides the keys beyond a sequence's own position, which are of whoever had the slot before.
        self._cache.expect_tokens(torch.arange(count, device=device), at, max(lengths))
        with attending(blocks_of(lengths)):
            logits = self._forward(tokens, at[:, None], torch.zeros_like(at))
        if self._sampler is None:
            self._sampler = Sampler([s.sampling for s in self.running], device)
        return self._draw(self.running, self._sampler, logits, torch.arange(count, device=device))

    def completion(self, sequence: Sequence, first: int) -> Completion:
        """The tokens from `first` on, with the whole trace where the sequence has ended; before it is swept out.

        A sequence that ended before its first token has no tokens, and a trace of none.
        """
        end = len(sequence.tokens)
        count = sequence.sampling.logprobs
        shape = (end - first, count)
        return Completion(
            index=sequence.index,
            token_ids=np.array(sequence.tokens[first:], dtype=np.int32),
            logprobs=self._records.logprobs(sequence.slot, first, end),
            versions=spans_between(sequence.starts, first, end) if first < end else (),
            finish_reason=sequence.finish_reason,
            router_trace=self._records.trace(sequence.slot, end) if sequence.finish_reason is not None else None,
            top_logprobs=TopLogprobs(
                np.array(sequence.top_ids[first:], dtype=np.int32).reshape(shape),
                np.array(sequence.top_logprobs[first:], dtype=np.float32).reshape(shape),
            )
            if count
            else None,
        )

    def replace(self, policy: Policy, version: int, *, keep_cache: bool = False) -> None:
        """Goes on with other weights.

        Args:
            keep_cache: what the running sequences have cached stays as the old weights computed it, which is not what
                the new ones would attend to. Otherwise it is computed again.
        """
        self.policy, self.version = policy, version
        if keep_cache:
            return
        for slots in self._chunks(0):
            self._prefill(slots)

    def sweep(self) -> None:
        """Frees the slots of ended sequences; the last ones move into the gaps."""
        alive = [slot for slot, sequence in enumerate(self.running) if sequence.finish_reason is None]
        if len(alive) == len(self.running):
            return
        taken = set(alive)
        gaps = [slot for slot in range(len(alive)) if slot not in taken]
        movers = [slot for slot in alive if slot >= len(alive)]
        for gap, mover in zip(gaps, movers, strict=True):
            self.running[gap] = self.running[mover]
            self.running[gap].slot = gap
        if gaps:
            self._cache.move(movers, gaps)
            self._records.move(movers, gaps)
        del self.running[len(alive) :]
        self._sampler = None

    def _chunks(self, first: int) -> Iterator[list[int]]:
        """Slots from `first` on, shortest context first, in groups that one prefill pass can hold."""
        chunk: list[int] = []
        distinct: set[tuple[int, ...]] = set()
        for slot in sorted(range(first, len(self.running)), key=lambda slot: len(self.running[slot].context)):
            context = self.running[slot].context
            if distinct and context not in distinct and (len(distinct) + 1) * len(context) > _PREFILL_TOKENS:
                yield chunk
                chunk, distinct = [], set()
            chunk.append(slot)
            distinct.add(context)
        if chunk:
            yield chunk

    def _prefill(self, slots: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Next-token logits [len(slots), vocabulary] and the flat positions they come from; equal contexts share a row.

        Contexts are padded on the right, where a causal mask hides the padding from all that counts.
        """
        device = self.policy.device
        contexts = [self.running[slot].context for slot in slots]
        row_of = {context: row for row, context in enumerate(dict.fromkeys(contexts))}
        width = max(map(len, row_of))
        padded = torch.tensor([context + (0,) * (width - len(context)) for context in row_of], device=device)
        rows = torch.tensor([row_of[context] for context in contexts], device=device)
        last = torch.tensor([len(context) - 1 for context in row_of], device=device)
        self._cache.expect_prompts(torch.tensor(slots, device=device), rows, width)
        positions = torch.arange(width, device=device).expand(len(row_of), width)
        logits = self._forward(padded, positions, last)
        return logits[rows], rows * width + last[rows]

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] at token last[row] of tokens [rows, T]."""
        model, rows = self.policy.model, torch.arange(len(tokens), device=tokens.device)
        # Logits of a whole prompt would take T times the memory; transformers' logits_to_keep is the same for all rows.
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][rows, last],))
        try:
            logits: torch.Tensor = model(
                input_ids=tokens,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        finally:
            hook.remove()
        return logits

    def _draw(
        self, sequences: list[Sequence], sampler: Sampler, logits: torch.Tensor, positions: torch.Tensor
    ) -> list[Sequence]:
        """Gives each sequence its next token from logits [N, vocabulary], with the routes at `positions` [N]."""
        drawn = sampler.draw(logits, [float(s.uniforms[len(s.tokens)]) for s in sequences])
        rows = {"logprobs": drawn.logprobs} | (self.policy.tap.rows(positions) if self.policy.tap else {})
        self._records.write([s.slot for s in sequences], [len(s.tokens) for s in sequences], rows)
        for sequence, token in zip(sequences, drawn.tokens, strict=True):
            sequence.take(token, self.version, self._stop_ids)
        _keep_top(sequences, drawn)
        return list(sequences)


def _keep_top(sequences: list[Sequence], drawn: Drawn) -> None:
    if drawn.top is None:
        return
    for sequence, ids, logprobs in zip(sequences, *drawn.top, strict=True):
        if count := sequence.sampling.logprobs:
            # Copies: a view would keep the rows of the whole batch alive.
            sequence.top_ids.append(ids[:count].copy())
            sequence.top_logprobs.append(logprobs[:count].copy())
