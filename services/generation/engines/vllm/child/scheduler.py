"""How samples end and wait inside vLLM's child: what is mixed into its scheduler.

Written for the scheduler of vLLM 0.32.0, whose hooks these classes override. Only vLLM's own processes import this
module: it imports vLLM.
"""

import atexit
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.request import RequestStatus

from services.generation.engines.stopping import StopChecker
from services.generation.engines.vllm.child.runners import StepRows
from services.generation.engines.vllm.output import STOP
from shared.models.tokenizer import read_tokenizer


class StopStrings:
    """Ends a request with the token that completes one of its stop strings; see `stopping`.

    vLLM's own rule needs its tokenizer, drops the string from the text, and works in the parent: the child samples on
    until it hears of it, so tokens and router rows would part.
    """

    vllm_config: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokenizer = read_tokenizer(Path(self.vllm_config.model_config.model))

    def _update_request_with_output(self, request: Any, tokens: list[int], **kwargs: Any) -> tuple[list[int], bool]:
        tokens, stopped = super()._update_request_with_output(request, tokens, **kwargs)  # type: ignore[misc]  # a mixin
        stop = (request.sampling_params.extra_args or {}).get(STOP)
        if not stop:
            return tokens, stopped
        if not hasattr(request, "stop_checker"):
            request.stop_checker = StopChecker(self._tokenizer, stop)
        for kept, token in enumerate(tokens, 1):
            if request.stop_checker.feed(token):
                request.status = RequestStatus.FINISHED_STOPPED
                return tokens[:kept], True
        return tokens, stopped


class UpdatePolicies:
    """What `UpdatePolicy` promises where vLLM's own ways to pause do not: WAIT and ABORT, without loss."""

    requests: dict[str, Any]
    waiting: Any
    aux_output_connector: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._held: list[Any] | None = None  # requests that begin on the next weights; None: they need not wait
        self._rows_of_aborted: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def set_pause_state(self, state: PauseState) -> None:
        """In place of PAUSED_NEW, which would also hold back requests that have begun and were preempted."""
        if state is PauseState.PAUSED_NEW:
            self._held = [request for request in self.waiting if request.status != RequestStatus.PREEMPTED]
            self.waiting.remove_requests(self._held)
            return
        held, self._held = self._held or [], None
        super().set_pause_state(state)  # type: ignore[misc]  # a mixin
        for request in held:
            if not request.is_finished():
                self._enqueue_waiting_request(request)

    def _enqueue_waiting_request(self, request: Any) -> None:
        if self._held is None:
            super()._enqueue_waiting_request(request)  # type: ignore[misc]  # a mixin
        else:
            self._held.append(request)

    def finish_requests(self, request_ids: str | Iterable[str] | None, status: RequestStatus) -> list[Any]:
        if request_ids is None and self.aux_output_connector is not None:
            # All at once: an update that aborts, or the end of this process.
            self._rows_of_aborted = {name: self.aux_output_connector.rows_of(name) for name in self.requests}
        finished: list[Any] = super().finish_requests(request_ids, status)  # type: ignore[misc]  # a mixin
        return finished

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """An update throws all KV cache away. That is no preemption, which would say that there is too little of it."""
        preempted = {request.request_id: len(request.events) for request in self.requests.values()}
        reset: bool = super().reset_prefix_cache(*args, **kwargs)  # type: ignore[misc]  # a mixin
        for name, events in preempted.items():
            del self.requests[name].events[events:]
        return reset

    def last_outputs(self, aborted: list[Any]) -> EngineCoreOutputs:
        """Outputs of requests that were ended all at once, with their router rows."""
        rows, self._rows_of_aborted = self._rows_of_aborted, {}
        names = [request.request_id for request in aborted]
        outputs = [
            EngineCoreOutput(name, [], finish_reason=FinishReason.ABORT, routed_experts=rows.get(name))
            for name in names
        ]
        return EngineCoreOutputs(outputs=outputs, finished_requests=set(names))


class _RowsByRequest:
    """In place of vLLM's connector for auxiliary outputs, on the side of the scheduler."""

    def __init__(self) -> None:
        self._rows: dict[str, bytearray] = {}
        self._row_bytes = 0

    def build_connector_meta(self, scheduler_output: Any, requests: Any) -> None:
        """The worker need not be told anything."""

    def take_output(self, request: Any, output: StepRows | None) -> NDArray[np.uint8] | None:
        """Keeps the row of a request's new token; all its rows [T, L * W] where that was the last."""
        if output is None:
            return None
        name = request.request_id
        if (rows := self._rows.get(name)) is None:
            rows = self._rows[name] = bytearray()
            self._row_bytes = output.row_bytes
        start = output.index_of[name] * output.row_bytes
        rows += output.rows[start : start + output.row_bytes]
        return self.rows_of(name) if request.is_finished() else None

    def rows_of(self, name: str) -> NDArray[np.uint8] | None:
        """[T, L * W] of a request that ends now; None where it has no token yet, or no routers."""
        rows = self._rows.get(name)
        return None if rows is None else np.frombuffer(rows, np.uint8).reshape(-1, self._row_bytes)

    def request_finished(self, request: Any) -> None:
        """vLLM calls this for a preempted request too, whose rows must stay."""
        if request.is_finished():
            self._rows.pop(request.request_id, None)

    def reset(self) -> None:
        """vLLM calls this with the prefix cache, which these rows do not depend on."""


class RouterScheduler(StopStrings, UpdatePolicies, Scheduler):  # type: ignore[misc]  # vLLM has no types for mypy here
    """The scheduler with a collector of router rows, stop strings and policies of updates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Ctrl-C reaches the whole process group, but the parent still lets its requests finish.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        atexit.register(os._exit, 0)  # Python would free a million objects one by one for 2 s
        super().__init__(*args, **kwargs)
        self.aux_output_connector = _RowsByRequest()


def send_rows_of_aborted() -> None:
    """Has this process send router rows with the requests it aborts, which vLLM's own last outputs leave out."""

    def send(engine: EngineCoreProc, aborted: list[Any]) -> None:
        client = 0  # the one that started this process
        engine.output_queue.put_nowait((client, engine.scheduler.last_outputs(aborted)))

    EngineCoreProc._send_abort_outputs = send
