"""Clients that services have of each other: those of the library, and what only operators may ask."""

from collections.abc import Sequence

from routershift import wire
from routershift.client.asynchronous import (
    AsyncClient,
    AsyncEnvironmentClient,
    AsyncGenerationClient,
    AsyncRewardClient,
)
from routershift.trajectory import Completion
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import learner_pb2 as lrn
from routershift.v1 import learner_pb2_grpc as lrn_grpc
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import trajectory_pb2 as pb
from shared.settings import AccessSettings
from shared.tracing import spans


class _ByTable(AsyncClient):
    """Shows what the table [access] says, and nothing where there is none, whatever the environment has.

    A call goes with the trace of the block around it.
    """

    def __init__(self, target: str, timeout: float = 60.0, access: AccessSettings | None = None) -> None:
        super().__init__(target, timeout, access or AccessSettings())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (*super()._metadata(), *spans.metadata())


class GenerationClient(_ByTable, AsyncGenerationClient):
    """Samples from the policy that serves now, and gives it new weights."""

    async def update_weights(self, manifest: pb.WeightsManifest) -> gen.UpdateWeightsResponse:
        """Raises PreconditionError for a version not above the serving one, CorruptDataError for a wrong checksum."""
        response: gen.UpdateWeightsResponse = await self._call(
            self._stub.UpdateWeights, gen.UpdateWeightsRequest(manifest=manifest)
        )
        return response


class RewardClient(_ByTable, AsyncRewardClient):
    """Scores responses with a named verifier."""

    async def score_early(self, prompt: pb.Prompt, samples: Sequence[Completion]) -> list[pb.Score]:
        """Scores samples whose group is not complete. Reward keeps the scores until that comes to it."""
        items = [
            rew.ScoreItem(
                prompt=prompt.text,
                response=sample.text,
                reference=prompt.reference,
                special_tokens=wire.encode_special_tokens(sample.special_tokens),
            )
            for sample in samples
        ]
        request = rew.ScoreRequest(verifier=prompt.verifier, items=items, early=True)
        response: rew.ScoreResponse = await self._call(self._stub.Score, request)
        return list(response.scores)


class EnvironmentClient(_ByTable, AsyncEnvironmentClient):
    """Plays episodes with the policy that serves now, or step by step."""


class LearnerClient(_ByTable, AsyncClient):
    """Watches and steers the learner."""

    def __init__(self, target: str, timeout: float = 60.0, access: AccessSettings | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = lrn_grpc.LearnerServiceStub(self._channel)

    async def status(self) -> lrn.LearnerServiceGetStatusResponse:
        response: lrn.LearnerServiceGetStatusResponse = await self._call(
            self._stub.GetStatus, lrn.LearnerServiceGetStatusRequest()
        )
        return response

    async def checkpoint(self) -> lrn.CheckpointResponse:
        """Returns when a checkpoint of the step in progress is durable."""
        response: lrn.CheckpointResponse = await self._call(self._stub.Checkpoint, lrn.CheckpointRequest())
        return response

    async def pause(self) -> int:
        """No step begins after this; returns the steps done once the step in progress has ended.

        Raises:
            DeadlineError: the step takes longer than `timeout`; the learner is paused all the same.
        """
        response = await self._call(self._stub.Pause, lrn.PauseRequest())
        return int(response.step)

    async def resume(self) -> int:
        response = await self._call(self._stub.Resume, lrn.ResumeRequest())
        return int(response.step)
