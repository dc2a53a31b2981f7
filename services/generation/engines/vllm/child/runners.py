"""Where the rows of a step leave vLLM's model runners: two runners, one small interface.

Written for vLLM 0.32.0. Rows are attached to the very output that the tokens travel in, in the field that vLLM has for
expert ids, so a token and its row cannot part. Only vLLM's own processes import this module.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from vllm.v1.outputs import ModelRunnerOutput

from services.generation.engines.vllm.child.taps import RowPacker


@dataclass(frozen=True, slots=True)
class StepRows:
    """The router rows of one step."""

    rows: bytes  # of all requests, one after the other, in the format of `vllm_rows`
    row_bytes: int
    index_of: dict[str, int]  # request id -> row

    @classmethod
    def of(cls, rows: torch.Tensor, index_of: dict[str, int]) -> "StepRows":
        """From uint8 [requests, L * W] on the CPU."""
        return cls(rows.numpy().tobytes(), rows.shape[1], index_of)


class RunnerAdapter(Protocol):
    """Has a model runner give its rows away; made once, when the model is loaded."""

    def attach(self, output: Any) -> Any:
        """Called with what `sample_tokens` of the worker returns; gives it back, with rows."""
        ...


class V1Adapter:
    """For the V1 model runner with synchronous scheduling and without speculative decoding.

    Run and tested on CPU. On GPU it is the same code, and has never been run.
    """

    def __init__(self, runner: Any, packer: RowPacker) -> None:
        self._packer = packer
        self._positions = torch.empty(0, dtype=torch.int64)
        self._tokens = 0
        prepare = runner._prepare_inputs

        def prepare_and_keep(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            prepared = prepare(scheduler_output, *args, **kwargs)
            self._positions = prepared[0]  # of the last token of each request, whose logits are sampled from
            self._tokens = scheduler_output.total_num_scheduled_tokens
            return prepared

        runner._prepare_inputs = prepare_and_keep

    def attach(self, output: Any) -> Any:
        """See `RunnerAdapter.attach`."""
        if isinstance(output, ModelRunnerOutput) and output.sampled_token_ids:
            rows = self._packer.pack(self._positions, self._tokens)
            if rows is not None:
                output.aux_output_connector_output = StepRows.of(rows.cpu(), output.req_id_to_index)
        return output


class V2Adapter:
    """For Model Runner V2, in place of its connector for auxiliary outputs. Never run: it needs a GPU with Triton.

    The runner calls `prepare_output` on its main stream after sampling, then `enqueue_cpu_copy` on the stream of its
    copies, and `process_output` once that is synchronized.
    """

    def __init__(self, runner: Any, packer: RowPacker) -> None:
        self._packer = packer
        runner.aux_output_connector = self

    def attach(self, output: Any) -> Any:
        """See `RunnerAdapter.attach`. The runner has done it."""
        return output

    def begin_step(self, metadata: Any) -> None:
        """The scheduler has nothing to tell."""

    def prepare_output(self, input_batch: Any) -> "PendingRows | None":
        """Packs the rows of a step before the next one overwrites what the taps hold."""
        rows = self._packer.pack(input_batch.logits_indices, input_batch.num_tokens)
        if rows is None:
            return None
        return PendingRows(rows, {name: index for index, name in enumerate(input_batch.req_ids)})

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class PendingRows:
    """Rows of Model Runner V2 on their way from the device."""

    rows: torch.Tensor  # uint8 [requests, L * W], kept until the copy has ended
    index_of: dict[str, int]
    copied: torch.Tensor | None = None

    def enqueue_cpu_copy(self, num_sampled: Any, num_rejected: Any) -> None:
        self.copied = self.rows.to("cpu", non_blocking=True)

    def process_output(self) -> StepRows:
        if self.copied is None:
            raise RuntimeError("vLLM consumed router rows before it copied them")
        return StepRows.of(self.copied, self.index_of)
