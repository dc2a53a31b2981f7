"""The gRPC methods of the learner."""

from routershift.v1 import learner_pb2 as lrn
from routershift.v1 import learner_pb2_grpc as lrn_grpc
from services.learner.checkpointing import checkpoint
from services.learner.worker import LearnerWorker
from shared.errors import UnavailableError
from shared.rpc.server import begin
from shared.streams.run import FINISHED, PAUSED, TRAINING

_PHASES = {
    TRAINING: lrn.LEARNER_PHASE_TRAINING,
    PAUSED: lrn.LEARNER_PHASE_PAUSED,
    FINISHED: lrn.LEARNER_PHASE_FINISHED,
}


class LearnerServicer(lrn_grpc.LearnerServiceServicer):
    """Answers UNAVAILABLE until `open` has given it a worker."""

    def __init__(self) -> None:
        self._worker: LearnerWorker | None = None

    def open(self, worker: LearnerWorker) -> None:
        self._worker = worker

    async def GetStatus(
        self, request: lrn.LearnerServiceGetStatusRequest, context: object
    ) -> lrn.LearnerServiceGetStatusResponse:
        status = self._opened().status()
        return lrn.LearnerServiceGetStatusResponse(
            run_id=status.run_id,
            algorithm=status.algorithm,
            phase=_PHASES[status.phase],
            step=status.step,
            total_steps=status.total_steps,
            version=status.step,
            diagnostics=status.diagnostics,
        )

    async def Checkpoint(self, request: lrn.CheckpointRequest, context: object) -> lrn.CheckpointResponse:
        worker = self._opened()
        await begin(context)
        path = await worker.checkpoint_now()
        return lrn.CheckpointResponse(step=checkpoint.step_of(path), path=str(path))

    async def Pause(self, request: lrn.PauseRequest, context: object) -> lrn.PauseResponse:
        worker = self._opened()
        await begin(context)
        return lrn.PauseResponse(step=await worker.pause())

    async def Resume(self, request: lrn.ResumeRequest, context: object) -> lrn.ResumeResponse:
        return lrn.ResumeResponse(step=await self._opened().resume())

    def _opened(self) -> LearnerWorker:
        if self._worker is None:
            raise UnavailableError("the model is still loading; try again when the health check says SERVING")
        return self._worker
