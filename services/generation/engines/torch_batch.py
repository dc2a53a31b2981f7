"""Continuous batching for the torch engine: sequences in slots of a KV cache, and steps of all of them at once.

Slot s holds the keys and values of the sequence at index s of the batch, from position 0 on. Running sequences fill
the first slots without a gap, so a decoding step attends to a view of the cache: nothing is copied or gathered.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.generation.engines.base import EngineSampling
from services.generation.engines.torch_model import Policy
from services.generation.engines.torch_sampling import sample
from shared.errors import PreconditionError
from shared.trajectory import Completion, FinishReason, RouterTrace, spans_between

# Float32 in another order of summation, and one unit in the last place of a float16 score.
_PROBE_TOLERANCE = 1e-2
# Padded tokens of one prefill pass: bounds its memory.
_PREFILL_TOKENS = 8192


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample under way. Its newest token is not in the KV cache yet; the next step feeds it."""

    index: int
    prompt: list[int]
    sampling: EngineSampling
    uniforms: NDArray[np.float64]  # [max_tokens] in [0, 1): one per token, so a sample never depends on its neighbours
    finish_reason: FinishReason | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)  # a version and the first token drawn from it
    expert_ids: list[NDArray[Any]] = field(default_factory=list)  # each [L, K]
    log_scores: list[NDArray[np.float16]] = field(default_factory=list)  # each [L, K]

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens whose keys and values the cache holds before the next step."""
        return (*self.prompt, *self.tokens[:-1])

    def completion(self, policy: Policy, first: int) -> Completion:
        """The tokens from `first` on; with the whole trace where the sequence has ended."""
        trace = None
        if policy.tap is not None and self.finish_reason is not None:
            trace = RouterTrace(policy.tap.layout, np.stack(self.expert_ids), np.stack(self.log_scores))
        return Completion(
            index=self.index,
            token_ids=np.array(self.tokens[first:], dtype=np.int32),
            logprobs=np.array(self.logprobs[first:], dtype=np.float32),
            versions=spans_between(self.starts, first, len(self.tokens)),
            finish_reason=self.finish_reason,
            router_trace=trace,
        )


class SlotCache:
    """Keys and values of all slots, per layer [slots, heads, positions, head_dim]; grows with the longest sequence.

    Stands in for transformers' `Cache`: attention layers call `update` with the new keys and values.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._layers: dict[int, list[torch.Tensor]] = {}  # keys, values
        self._target: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        self._decoding = False
        self._positions = 0

    def expect_prompts(self, slots: torch.Tensor, rows: torch.Tensor, positions: int) -> None:
        """The next pass prefills: slot slots[i] takes row rows[i] of the pass."""
        self._decoding, self._target, self._positions = False, (slots, rows), positions

    def expect_tokens(self, slots: torch.Tensor, at: torch.Tensor, positions: int) -> None:
        """The next pass decodes: the one token of slot slots[i] is at position at[i] < positions."""
        self._decoding, self._target, self._positions = True, (slots, at), positions

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the new keys and values [rows, heads, new, head_dim]; returns all that the pass attends to."""
        stored = self._layers.setdefault(layer, [keys.new_zeros(0)] * 2)
        attended = []
        for kind, new in enumerate((keys, values)):
            store = stored[kind] = self._room(stored[kind], new)
            if self._decoding:
                slots, at = self._target
                store[slots, :, at] = new[:, :, 0]
                attended.append(store[: len(slots), :, : self._positions])
            else:
                slots, rows = self._target
                store[slots, :, : self._positions] = new[rows]
                attended.append(new)
        return attended[0], attended[1]

    def _room(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Zeros, never uninitialised memory: a masked position still multiplies its value by 0, and 0 * NaN is NaN."""
        if store.dim() == 4 and store.shape[2] >= self._positions:
            return store
        _, heads, _, width = new.shape
        grown = new.new_zeros(self._slots, heads, 1 << (self._positions - 1).bit_length(), width)
        if store.dim() == 4:
            grown[:, :, : store.shape[2]] = store
        return grown

    def move(self, sources: list[int], targets: list[int]) -> None:
        for stored in self._layers.values():
            for store in stored:
                store[targets] = store[sources]


class Batch:
    """The running sequences of one policy. Not safe for threads; runs under `torch.inference_mode`."""

    def __init__(self, policy: Policy, version: int, slots: int, stop_ids: frozenset[int]) -> None:
        self.policy = policy
        self.version = version
        self.running: list[Sequence] = []
        self._slots = slots
        self._stop_ids = stop_ids
        self._cache = SlotCache(slots)

    @property
    def free(self) -> int:
        return self._slots - len(self.running)

    def begin(self, first: int) -> list[Sequence]:
        """Prefills the sequences in slots `first` and up, and draws the first token of each."""
        begun = []
        for slots in self._chunks(first):
            begun += self._draw([self.running[slot] for slot in slots], *self._prefill(slots))
        return begun

    def step(self) -> list[Sequence]:
        """Draws the next token of all running sequences in one pass."""
        device = self.policy.device
        count = len(self.running)
        at = torch.tensor([len(s.prompt) + len(s.tokens) - 1 for s in self.running], device=device)
        tokens = torch.tensor([[s.tokens[-1]] for s in self.running], device=device)
        positions = int(at.max()) + 1
        self._cache.expect_tokens(torch.arange(count, device=device), at, positions)
        # Keys beyond a sequence's own position belong to whoever had the slot before.
        mask = torch.arange(positions, device=device) <= at[:, None]
        logits = self._forward(tokens, at[:, None], mask[:, None, None], torch.zeros_like(at))
        return self._draw(self.running, logits, torch.arange(count, device=device))

    def replace(self, policy: Policy, version: int) -> None:
        """Goes on with other weights: what the running sequences have cached is computed again from these."""
        self.policy, self.version = policy, version
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
        if gaps:
            self._cache.move(movers, gaps)
        del self.running[len(alive) :]

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
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        positions = torch.arange(width, device=device).expand(len(row_of), width)
        logits = self._forward(padded, positions, causal[None, None], last)
        return logits[rows], rows * width + last[rows]

    def _forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, last: torch.Tensor
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] at token last[row] of tokens [rows, T]."""
        model, rows = self.policy.model, torch.arange(len(tokens), device=tokens.device)
        # Logits of a whole prompt would take T times the memory; transformers' logits_to_keep is the same for all rows.
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][rows, last],))
        try:
            logits: torch.Tensor = model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        finally:
            hook.remove()
        return logits

    def _draw(self, sequences: list[Sequence], logits: torch.Tensor, positions: torch.Tensor) -> list[Sequence]:
        """Gives each sequence its next token from logits [N, vocabulary], with the routes at `positions` [N]."""
        uniforms = [float(s.uniforms[len(s.tokens)]) for s in sequences]
        tokens, logprobs = sample([s.sampling for s in sequences], uniforms, logits)
        rows = None if self.policy.tap is None else self.policy.tap.rows(positions)
        for i, (sequence, token, logprob) in enumerate(zip(sequences, tokens, logprobs, strict=True)):
            if not sequence.starts or sequence.starts[-1][0] != self.version:
                sequence.starts.append((self.version, len(sequence.tokens)))
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
            if rows is not None:
                # Copies: a view would keep the rows of the whole batch alive.
                sequence.expert_ids.append(rows[0][i].copy())
                sequence.log_scores.append(rows[1][i].copy())
            if token in self._stop_ids:
                sequence.finish_reason = FinishReason.STOP
            elif len(sequence.tokens) == sequence.sampling.max_tokens:
                sequence.finish_reason = FinishReason.LENGTH
        return list(sequences)


def probe(policy: Policy) -> None:
    """Proves that the batch computes what the model alone does, and that a router row arrives for each token.

    Raises:
        PreconditionError: it does not, or the model cannot run on this cache.
    """
    kind = policy.model.config.model_type
    sampling = EngineSampling(1, 0.0, 1.0, 0, 3, None)
    batch = Batch(policy, 0, 2, frozenset())
    batch.running += [Sequence(0, prompt, sampling, np.zeros(3)) for prompt in ([1], [1, 0, 1])]
    sequences = list(batch.running)
    try:
        with torch.inference_mode():
            batch.begin(0)
            batch.step()
            batch.step()
            errors = [_deviation(policy, sequence) for sequence in sequences]
    except Exception as error:
        raise PreconditionError(f"model_type {kind!r} does not run on the torch engine: {error!r}") from error
    if not max(errors) < _PROBE_TOLERANCE:
        raise PreconditionError(
            f"model_type {kind!r} does not run on the torch engine: log-probs or router scores are off by {max(errors)}"
        )


def _deviation(policy: Policy, sequence: Sequence) -> float:
    """Largest error of a greedy sequence's log-probs and router rows against one uncached forward pass."""
    first, tokens = len(sequence.prompt), torch.tensor(sequence.prompt + sequence.tokens, device=policy.device)
    logits = policy.model(input_ids=tokens[None, :-1], use_cache=False).logits[0, first - 1 :]
    expected = logits.float().log_softmax(-1).gather(-1, tokens[first:, None])[:, 0].tolist()
    error = float(np.abs(np.subtract(expected, sequence.logprobs)).max())
    if policy.tap is None:
        return error
    ids, scores = policy.tap.rows(torch.arange(first - 1, len(tokens) - 1, device=policy.device))
    if not np.array_equal(ids, np.stack(sequence.expert_ids)):
        return float("inf")
    return max(error, float(np.abs(scores - np.stack(sequence.log_scores)).max()))
