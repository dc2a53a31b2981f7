"""What the torch engine keeps of its running sequences, by slot: keys and values, and what was recorded of tokens.

Slot s holds the sequence at index s of the batch. Running sequences fill the first slots without a gap.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from routershift.routing.layout import RouterLayout
from routershift.trajectory import RouterExport, RouterTrace


class SlotCache:
    """Keys and values of all slots, per layer [slots, heads, positions, head_dim]; grows with the longest sequence.

    Stands in for transformers' `Cache`: masks are made by the positions that it names, and attention layers call
    `update` with the new keys and values. A decoding step attends to a view of it: nothing is copied or gathered.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._stores: dict[tuple[int, str], torch.Tensor] = {}  # by layer, and what is stored of it
        self._target: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        self._decoding = False
        self._positions = 0

    def expect_prompts(self, slots: torch.Tensor, rows: torch.Tensor, positions: int) -> None:
        """The next pass prefills: slot slots[i] takes row rows[i] of the pass."""
        self._decoding, self._target, self._positions = False, (slots, rows), positions

    def expect_tokens(self, slots: torch.Tensor, at: torch.Tensor, positions: int) -> None:
        """The next pass decodes: the one token of slot slots[i] is at position at[i] < positions."""
        self._decoding, self._target, self._positions = True, (slots, at), positions

    def get_query_offset(self, layer: int) -> int | torch.Tensor:
        """The position of the first token of the pass: of all rows, or [rows] of each."""
        return self._target[1] if self._decoding else 0

    def get_mask_sizes(self, new: int, layer: int) -> tuple[int, int]:
        """The positions that the pass attends to, and the first of them."""
        return self._positions, 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the new keys and values [rows, heads, new, head_dim]; returns all that the pass attends to."""
        return self._store(layer, "keys", keys), self._store(layer, "values", values)

    def update_indexer(self, keys: torch.Tensor, layer: int) -> torch.Tensor:
        """As `update` for the keys [rows, new, index_head_dim] by which an indexer picks what a token attends to."""
        return self._store(layer, "indexer", keys[:, None])[:, 0]

    def _store(self, layer: int, kind: str, new: torch.Tensor) -> torch.Tensor:
        """Stores tensors [rows, heads, new, width]; returns those of all positions that the pass attends to."""
        store = self._stores[layer, kind] = self._room(self._stores.get((layer, kind), new.new_zeros(0)), new)
        if self._decoding:
            slots, at = self._target
            store[slots, :, at] = new[:, :, 0]
            return store[: len(slots), :, : self._positions]
        slots, rows = self._target
        store[slots, :, : self._positions] = new[rows]
        return new

    def _room(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Zeros, never uninitialised memory: a masked position still multiplies its value by 0, and 0 * NaN is NaN."""
        if store.dim() == 4 and store.shape[2] >= self._positions:
            return store
        _, heads, _, width = new.shape
        grown = new.new_zeros(self._slots, heads, _power_of_two(self._positions), width)
        if store.dim() == 4:
            grown[:, :, : store.shape[2]] = store
        return grown

    def move(self, sources: list[int], targets: list[int]) -> None:
        for store in self._stores.values():
            store[targets] = store[sources]


class Records:
    """What was recorded of the response tokens of each slot, in arrays [slots, tokens, ...] that grow together.

    Its names: `logprobs`, and of a model whose routes are exported those fields of `RouterTrace` that the export holds.
    """

    def __init__(self, slots: int, layout: RouterLayout | None, export: RouterExport) -> None:
        self._layout = layout if export is not RouterExport.NONE else None
        self._arrays: dict[str, NDArray[Any]] = {"logprobs": np.empty((slots, 0), np.float32)}
        if self._layout is None:
            return
        layers, experts, chosen = len(self._layout.layer_ids), self._layout.num_experts, self._layout.top_k
        self._arrays["expert_ids"] = np.empty((slots, 0, layers, chosen), self._layout.id_dtype)
        if export is not RouterExport.IDS:
            self._arrays["log_scores"] = np.empty((slots, 0, layers, chosen), np.float16)
        if export is RouterExport.FULL:
            self._arrays["logits"] = np.empty((slots, 0, layers, experts), np.float16)

    def write(self, slots: list[int], tokens: list[int], rows: Mapping[str, NDArray[Any]]) -> None:
        """Row i of each array [N, ...] in `rows` is of token tokens[i] of slot slots[i]."""
        longest = max(tokens) + 1
        for name, new in rows.items():
            array = self._arrays[name]
            if array.shape[1] < longest:
                grown = np.empty((len(array), _power_of_two(longest), *array.shape[2:]), array.dtype)
                grown[:, : array.shape[1]] = array
                array = self._arrays[name] = grown
            array[slots, tokens] = new

    def logprobs(self, slot: int, first: int, end: int) -> NDArray[np.float32]:
        """Log-probs of tokens [first, end) of a sequence, float32."""
        return self._arrays["logprobs"][slot, first:end].copy()

    def trace(self, slot: int, tokens: int) -> RouterTrace | None:
        """The router trace of the first `tokens` tokens; None where nothing of the routers is exported."""
        if self._layout is None:
            return None
        rows = {name: array[slot, :tokens].copy() for name, array in self._arrays.items() if name != "logprobs"}
        return RouterTrace(self._layout, rows["expert_ids"], rows.get("log_scores"), rows.get("logits"))

    def move(self, sources: list[int], targets: list[int]) -> None:
        for array in self._arrays.values():
            array[targets] = array[sources]


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
