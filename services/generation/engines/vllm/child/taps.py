"""Taps on the routers of a model, and the packing of what they see into rows; torch alone, no vLLM.

A router here is an object with `_compute_routing(hidden, logits, ...) -> (weights, ids)`, whose logits [tokens, E] are
before any correction bias and whose ids [tokens, K] are those really used, before they are mapped to where the experts
are. Shapes: n sampled tokens of a step, L routed layers, K experts activated per token, E experts.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import logsigmoid

from routershift.trajectory import RouterExport


class Taps(Protocol):
    """What the routers of one step saw."""

    def take(self, positions: torch.Tensor, tokens: int) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        """Logits [n, L, E], where they are recorded, and ids [n, L, K] at token positions [n] of a step.

        None where a router was not seen in a step of that many tokens.
        """
        ...


class EagerTaps:
    """Keeps the tensors that the routers of a step worked with. For a model that runs op by op."""

    def __init__(self, routers: Sequence[Any], logits: bool) -> None:
        """Taps `routers`, one per routed layer, and their logits too where asked to."""
        self._logits: list[torch.Tensor | None] = [None] * len(routers)
        self._ids: list[torch.Tensor | None] = [None] * len(routers)
        for layer, router in enumerate(routers):
            router._compute_routing = self._tap(layer, router._compute_routing, logits)

    def _tap(self, layer: int, compute: Callable[..., Any], keep_logits: bool) -> Callable[..., Any]:
        seen_logits, seen_ids = self._logits, self._ids

        def compute_and_keep(hidden: torch.Tensor, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            weights, ids = compute(hidden, logits, *args, **kwargs)
            seen_ids[layer] = ids
            if keep_logits:
                seen_logits[layer] = logits
            return weights, ids

        return compute_and_keep

    def take(self, positions: torch.Tensor, tokens: int) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        """See `Taps.take`. A router that saw another number of tokens has not seen this step's."""
        ids = [seen for seen in self._ids if seen is not None and len(seen) == tokens]
        logits = [seen for seen in self._logits if seen is not None]
        if len(ids) < len(self._ids):
            return None
        self._ids[:] = [None] * len(ids)
        if len(positions) < tokens:  # else every token of the step is sampled from, in order
            ids = [seen[positions] for seen in ids]
            logits = [seen[positions] for seen in logits]
        return torch.stack(logits, dim=1) if logits else None, torch.stack(ids, dim=1)


class BufferTaps:
    """Copies what the routers see to where it stays. For a model that is compiled or captured in graphs.

    Must be made before compilation or graph capture: a compiled graph would go past the taps in silence.
    """

    def __init__(self, routers: Sequence[Any], logits: bool, max_tokens: int, device: torch.device) -> None:
        """Taps `routers`; a step has at most `max_tokens` tokens, padding included."""
        layers, first = len(routers), routers[0]
        self._logits = torch.zeros(max_tokens, layers, first.global_num_experts, device=device) if logits else None
        self._ids = torch.zeros(max_tokens, layers, first.top_k, dtype=torch.int32, device=device)
        self._fired = [False] * layers
        for layer, router in enumerate(routers):
            router._compute_routing = self._tap(layer, router._compute_routing)

    def _tap(self, layer: int, compute: Callable[..., Any]) -> Callable[..., Any]:
        def compute_and_copy(hidden: torch.Tensor, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            weights, ids = compute(hidden, logits, *args, **kwargs)
            self._ids[: len(ids), layer].copy_(ids)
            if self._logits is not None:
                self._logits[: len(logits), layer].copy_(logits)
            self._fired[layer] = True
            return weights, ids

        return compute_and_copy

    def take(self, positions: torch.Tensor, tokens: int) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        """See `Taps.take`. A replayed graph does not tell Python, so a router is seen once it was ever seen.

        One that a graph goes past leaves zeros, which are known for what they are, not the ids of an earlier step.
        """
        if not all(self._fired):
            return None
        taken = None if self._logits is None else self._logits[positions], self._ids[positions]
        self._ids[:tokens].zero_()
        return taken


class RowPacker:
    """Makes rows, in the format of `vllm_rows`, of what the taps saw."""

    def __init__(self, taps: Taps, export: RouterExport, score_function: str, num_experts: int) -> None:
        """
        Args:
            export: not none.
            score_function: a `routershift.trajectory.ScoreFunction`; another one gets scores that mean nothing.
            num_experts: E; ids take one byte up to 256.
        """
        self._taps = taps
        self._export = export
        self._score_function = score_function
        self._id_dtype = torch.uint8 if num_experts <= 256 else torch.int16

    def pack(self, positions: torch.Tensor, tokens: int) -> torch.Tensor | None:
        """uint8 [n, L * W] on the taps' device; see `Taps.take`."""
        if (taken := self._taps.take(positions, tokens)) is None:
            return None
        logits, ids = taken
        parts = [ids.to(self._id_dtype).view(torch.uint8)]
        if logits is not None:
            parts.append(self._log_scores(logits.float(), ids.long()).half().view(torch.uint8))
            if self._export is RouterExport.FULL:
                parts.append(logits.half().view(torch.uint8))
        return torch.cat(parts, dim=-1).flatten(1)

    def _log_scores(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """[n, L, K]. A softmax score is over all experts, whatever the model does to the weights of the chosen ones."""
        if self._score_function == "sigmoid":
            return logsigmoid(logits.gather(-1, ids))
        if self._score_function == "softmax_topk":
            return logits.gather(-1, ids).log_softmax(-1)
        return logits.log_softmax(-1).gather(-1, ids)
