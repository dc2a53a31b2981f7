"""The gRPC methods of environments."""

from collections.abc import Mapping

from routershift import wire
from routershift.v1 import environment_pb2 as env
from routershift.v1 import environment_pb2_grpc as env_grpc
from services.environments import metrics
from services.environments.gateway.methods import AgentMethods
from services.environments.hosting import HostedEpisodes
from services.environments.messages import decode_action, encode_environment, encode_observation, encode_step
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.registry import Configured, find
from services.environments.settings import EnvironmentsSettings
from services.environments.worker import Plays
from shared.errors import DeadlineError, InvalidInputError, OverloadedError, UnavailableError
from shared.rpc.server import begin

_LATE = (Reason.ENVIRONMENT_TIMED_OUT, Reason.EPISODE_TIMED_OUT)


class EnvironmentsServicer(AgentMethods, env_grpc.EnvironmentServiceServicer):
    """Answers UNAVAILABLE until `open`, and to Play until generation serves."""

    def __init__(self, environments: Mapping[str, Configured], settings: EnvironmentsSettings) -> None:
        self._environments = environments
        self._settings = settings
        self._hosted: HostedEpisodes | None = None
        self._player: Plays | None = None
        self._playing = 0

    def open(self, hosted: HostedEpisodes) -> None:
        self._hosted = hosted

    async def close(self) -> None:
        """Ends what is open."""
        if self._hosted is not None:
            await self._hosted.close_all()

    def play_with(self, player: Plays) -> None:
        self._player = player

    async def Reset(self, request: env.ResetRequest, context: object) -> env.ResetResponse:
        hosted = self._episodes()
        self._require_size(request)
        find(self._environments, request.environment)
        await begin(context)
        try:
            episode_id, observation = await hosted.reset(
                request.environment, wire.decode_struct(request.task), request.seed
            )
        except EpisodeFailedError as error:
            raise _as_call(error) from error
        return env.ResetResponse(episode_id=episode_id, observation=encode_observation(observation))

    async def Step(self, request: env.StepRequest, context: object) -> env.StepResponse:
        hosted = self._episodes()
        self._require_size(request)
        action = decode_action(request)
        try:
            return encode_step(await hosted.step(request.episode_id, request.turn, action))
        except EpisodeFailedError as error:
            raise _as_call(error) from error

    async def Close(self, request: env.CloseRequest, context: object) -> env.CloseResponse:
        await self._episodes().close(request.episode_id)
        return env.CloseResponse()

    async def Play(self, request: env.PlayRequest, context: object) -> env.PlayResponse:
        find(self._environments, request.prompt.environment)
        if self._player is None:
            raise UnavailableError("generation does not serve yet; try again when it does")
        if self._playing >= self._settings.max_plays:
            raise OverloadedError(
                f"{self._playing} calls of Play are in progress; environments.max_plays = {self._settings.max_plays}"
            )
        await begin(context)
        self._playing += 1
        try:
            with metrics.PLAYING.track_inprogress():
                group = await self._player.play(request.prompt, return_router=request.return_router)
        except EpisodeFailedError as error:
            metrics.FAILED.labels(request.prompt.environment, error.reason).inc()
            raise _as_call(error) from error
        finally:
            self._playing -= 1
        metrics.count_group(request.prompt.environment, group.trajectories)
        return env.PlayResponse(group=group)

    async def ListEnvironments(
        self, request: env.ListEnvironmentsRequest, context: object
    ) -> env.ListEnvironmentsResponse:
        made = [encode_environment(name, known.make()) for name, known in self._environments.items()]
        return env.ListEnvironmentsResponse(environments=made)

    def _episodes(self) -> HostedEpisodes:
        if self._hosted is None:
            raise UnavailableError("the service is still starting; try again when the health check says SERVING")
        return self._hosted

    def _require_size(self, request: env.ResetRequest | env.StepRequest) -> None:
        most = self._settings.hosting.max_kb
        if request.ByteSize() > most << 10:
            raise InvalidInputError(
                f"the request is {request.ByteSize()} bytes long; allowed: environments.hosting.max_kb = {most} KiB"
            )


def _as_call(error: EpisodeFailedError) -> Exception:
    """As callers see it: INTERNAL with what failed, or DEADLINE_EXCEEDED."""
    return DeadlineError(str(error)) if error.reason in _LATE else error
