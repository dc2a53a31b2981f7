"""The environment kind `agent`: its episodes are played by agents of anybody, over HTTP."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from services.environments.base import Action, Environment, EnvironmentSettings, Observation, Step
from shared.errors import InvalidInputError
from shared.table import Texts

_ELSEWHERE = "environments of the kind 'agent' are played at the gateway: POST /episodes there, not Reset and Step"


class AgentSettings(EnvironmentSettings):
    """Agents claim episodes over POST /episodes of the gateway, and some may be started here."""

    command: Texts = Field(
        (), description="an agent to start: program and arguments; default: agents come from elsewhere"
    )
    variables: Texts = Field((), description="names of environment variables of the service that `command` sees")
    processes: int = Field(1, ge=1, description="how many of `command` run")
    claim_seconds: float = Field(1800.0, gt=0, description="how long an episode waits for an agent")


class AgentEnvironment(Environment):
    """Stands for agents, which say everything themselves: it is never reset nor stepped."""

    name = "agent"
    version = "1"
    description = "episodes that agents claim and play over the OpenAI API"
    Settings: ClassVar[type[EnvironmentSettings]] = AgentSettings
    settings: AgentSettings

    async def reset(self, task: Mapping[str, Any], seed: int) -> Observation | None:
        raise InvalidInputError(_ELSEWHERE)

    async def step(self, action: Action) -> Step:
        raise InvalidInputError(_ELSEWHERE)
