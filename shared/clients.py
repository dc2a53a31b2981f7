"""Clients that services have of each other: those of the library, and what only operators may ask."""

from routershift.client.asynchronous import AsyncClient, AsyncGenerationClient, AsyncRewardClient
from routershift.v1 import environment_pb2 as env
from routershift.v1 import environment_pb2_grpc as env_grpc
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import learner_pb2 as lrn
from routershift.v1 import learner_pb2_grpc as lrn_grpc
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


class EnvironmentClient(_ByTable, AsyncClient):
    """Plays episodes with the policy that serves now, or step by step."""

    def __init__(self, target: str, timeout: float = 60.0, access: AccessSettings | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = env_grpc.EnvironmentServiceStub(self._channel)

    async def play(self, prompt: pb.Prompt, return_router: bool = False) -> pb.TrajectoryGroup:
        """A group of episodes, when all have ended; scored, unless the prompt names a verifier."""
        response = await self._call(self._stub.Play, env.PlayRequest(prompt=prompt, return_router=return_router))
        group: pb.TrajectoryGroup = response.group
        return group

    async def reset(self, request: env.ResetRequest) -> env.ResetResponse:
        """Begins an episode. Raises NotFoundError, InvalidInputError: no such environment, or a task that is none."""
        response: env.ResetResponse = await self._call(self._stub.Reset, request)
        return response

    async def step(self, request: env.StepRequest) -> env.StepResponse:
        """What the environment answers. It may be asked for again: a turn is done once.

        Raises:
            NotFoundError: no such episode is open.
        """
        response: env.StepResponse = await self._call(self._stub.Step, request)
        return response

    async def close(self, episode_id: str) -> None:
        """Ends an episode, also one that is not there."""
        await self._call(self._stub.Close, env.CloseRequest(episode_id=episode_id))

    async def environments(self) -> list[env.Environment]:
        """What there is, with its tools."""
        response = await self._call(self._stub.ListEnvironments, env.ListEnvironmentsRequest())
        return list(response.environments)


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
