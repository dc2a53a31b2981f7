"""An environment that runs elsewhere: behind any server of the gRPC EnvironmentService."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import grpc
from pydantic import Field, model_validator

from routershift import wire
from routershift.client.channel import open_blocking_channel
from routershift.client.credentials import Bearer
from routershift.client.status import raise_typed
from routershift.loopback import is_loopback
from routershift.trajectory import FinishReason, Role
from routershift.v1 import environment_pb2 as env
from routershift.v1 import environment_pb2_grpc as env_grpc
from services.environments.base import (
    Action,
    Environment,
    EnvironmentSettings,
    Message,
    MessagesObservation,
    Observation,
    Step,
    TextObservation,
    TokensObservation,
)
from services.environments.playing.failures import EpisodeFailedError, Reason
from shared.clients import EnvironmentClient
from shared.errors import DeadlineError, InvalidInputError, NotFoundError, OverloadedError, UnavailableError
from shared.names import did_you_mean
from shared.settings import AccessSettings

_FINISH_REASONS = {reason: code for code, reason in wire.FINISH_REASONS.items()}
_RETRIED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")  # a server that failed says INTERNAL: it fails again
_MAX_BACKOFF_SECONDS = 5.0


class RemoteSettings(EnvironmentSettings):
    """Where it runs, and what is shown there."""

    address: str = Field(pattern=r"^grpcs?://[^\s@/]+$", description="grpc://host:port, or grpcs://host:port")
    environment: str = Field(min_length=1, description="its name there")
    token_file: Path | None = Field(None, description="file with a bearer token; only for grpcs and loopback")
    ca_file: Path | None = Field(None, description="certificates to trust; grpcs needs it")
    certificate_file: Path | None = Field(None, description="to show to a grpcs address that asks for one")
    key_file: Path | None = Field(None, description="of the certificate")
    start_seconds: float = Field(30.0, gt=0, description="how long the service waits for it when it starts")
    call_seconds: float = Field(
        30.0, gt=0, description="deadline of one call; environments.turn_seconds bounds all attempts together"
    )
    attempts: int = Field(5, ge=1, description="calls for one turn, where nobody answers or there is no room")
    backoff_seconds: float = Field(0.2, gt=0, description="wait after the first failure; it doubles, up to 5 s")

    @model_validator(mode="after")
    def _fits_the_address(self) -> Self:
        scheme, _, target = self.address.partition("://")
        if (scheme == "grpcs") != (self.ca_file is not None):
            raise ValueError("ca_file goes with grpcs://, which needs it")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together; set both or none")
        if self.certificate_file and scheme != "grpcs":
            raise ValueError("certificate_file and key_file are for grpcs://")
        if self.token_file and scheme == "grpc" and not is_loopback(target):
            raise ValueError(f"token_file would go in clear text to {target}; use grpcs://")
        return self

    @property
    def target(self) -> str:
        """For gRPC."""
        return self.address.partition("://")[2]

    @property
    def access(self) -> AccessSettings:
        return AccessSettings(
            authority=self.ca_file, certificate=self.certificate_file, key=self.key_file, token=self.token_file
        )


class RemoteEnvironment(Environment):
    """What it is and which tools it has, it says itself, when the service starts.

    A turn that found nobody, or no room, is asked for again with its number; a server does none twice. One that a
    server has begun to answer, and lost, is a failure of the episode.
    """

    name = "remote"
    version = "1"
    description = "an environment behind a gRPC address"
    Settings: ClassVar[type[EnvironmentSettings]] = RemoteSettings

    def __init__(self, settings: EnvironmentSettings) -> None:
        """Asks the server what it is, the first time.

        Raises:
            UnavailableError, DeadlineError: nobody answers.
            NotFoundError: it has no environment of this name.
        """
        super().__init__(settings)
        about = self._described()
        self.version = about.version
        self.description = about.description
        self.rewards = about.rewards
        self.stop = tuple(about.stop)
        self.task_schema = wire.decode_struct(about.task_schema)
        self._tools = [wire.decode_struct(tool) for tool in about.tools]
        self._client: EnvironmentClient | None = None
        self._episode = ""
        self._turn = 0

    def _described(self) -> env.Environment:
        """What it is."""
        if not isinstance(self.settings, RemoteSettings):
            raise InvalidInputError(f"settings are {type(self.settings).__name__}; expected RemoteSettings")
        self._remote = self.settings
        return described(self._remote)

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return self._tools

    async def reset(self, task: Mapping[str, Any], seed: int) -> Observation | None:
        remote = self._remote
        client = self._client = EnvironmentClient(remote.target, remote.call_seconds, remote.access)
        request = env.ResetRequest(environment=remote.environment, task=wire.encode_struct(task), seed=seed)
        try:
            # Not again: the server may have begun an episode, which nobody would close.
            response = await client.reset(request)
        except DeadlineError as error:
            raise self._late(error) from error
        self._episode = response.episode_id
        return decode_observation(response.observation) if response.HasField("observation") else None

    async def step(self, action: Action) -> Step:
        try:
            response = await self._step(encode_step(self._episode, self._turn, action))
        except DeadlineError as error:
            raise self._late(error) from error
        self._turn += 1
        return decode_step(response)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            if self._episode:
                await client.close(self._episode)
        finally:
            await client.__aexit__()

    async def _step(self, request: env.StepRequest) -> env.StepResponse:
        if self._client is None:
            raise EpisodeFailedError("step came before reset")
        wait = self._remote.backoff_seconds
        for attempt in range(1, self._remote.attempts + 1):
            try:
                return await self._client.step(request)
            except (UnavailableError, OverloadedError) as error:
                if error.status not in _RETRIED or attempt == self._remote.attempts:
                    raise
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  # spreads retries, guards nothing
            wait = min(2 * wait, _MAX_BACKOFF_SECONDS)
        raise AssertionError("attempts is at least 1")

    def _late(self, error: DeadlineError) -> EpisodeFailedError:
        return EpisodeFailedError(f"{self._remote.address}: {error}", Reason.ENVIRONMENT_TIMED_OUT)


@lru_cache
def described(settings: RemoteSettings) -> env.Environment:
    """What the server says of the environment; asked once. Blocks.

    Raises:
        UnavailableError, DeadlineError: nobody answers within start_seconds.
        NotFoundError: it has no environment of this name.
    """
    with open_blocking_channel(settings.target, settings.access) as channel:
        try:
            response = env_grpc.EnvironmentServiceStub(channel).ListEnvironments(
                env.ListEnvironmentsRequest(),
                timeout=settings.start_seconds,
                metadata=Bearer(settings.access).metadata(),
                wait_for_ready=True,
            )
        except grpc.RpcError as error:
            raise_typed(error, f"ListEnvironments of {settings.address}")
    known = {about.name: about for about in response.environments}
    if (about := known.get(settings.environment)) is None:
        raise NotFoundError(
            f"{settings.address} has no environment {settings.environment!r}; it has {', '.join(known) or 'none'}"
            f"{did_you_mean(settings.environment, known)}"
        )
    return about


def encode_step(episode_id: str, turn: int, action: Action) -> env.StepRequest:
    """What is asked for a turn."""
    calls = [
        env.ToolCall(
            id=call.id,
            name=call.name,
            arguments=None if call.arguments is None else wire.encode_struct(call.arguments),
            error=call.error,
        )
        for call in action.tool_calls
    ]
    return env.StepRequest(
        episode_id=episode_id,
        turn=turn,
        text=action.text,
        tool_calls=calls,
        finish_reason=_FINISH_REASONS[FinishReason(action.finish_reason)],
    )


def decode_step(message: env.StepResponse) -> Step:
    """Raises InvalidInputError: see `decode_observation`."""
    return Step(
        observation=decode_observation(message.observation) if message.HasField("observation") else None,
        reward=message.reward if message.HasField("reward") else None,
        is_done=message.done,
        parts=dict(message.parts),
    )


def decode_observation(message: env.Observation) -> Observation:
    """Raises InvalidInputError: it is more than one of text, messages and token_ids, or of an unknown role."""
    given = [name for name in ("text", "messages", "token_ids") if getattr(message, name)]
    if len(given) > 1:
        raise InvalidInputError(f"observation has {' and '.join(given)}; expected one of them")
    if given == ["messages"]:
        return MessagesObservation(
            tuple(
                Message(_role(each.role, f"messages[{i}].role"), each.content)
                for i, each in enumerate(message.messages)
            )
        )
    role = _role(message.role, "role")
    if given == ["token_ids"]:
        return TokensObservation(tuple(message.token_ids), role)
    return TextObservation(message.text, role)


def _role(code: int, where: str) -> Role:
    role = next((role for known, role in wire.ROLES.items() if known == code), None)
    if role is None:
        raise InvalidInputError(f"observation.{where} is {code}; expected one of {', '.join(Role)}")
    return role
