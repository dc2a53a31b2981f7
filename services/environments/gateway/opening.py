"""Episodes that callers open for themselves: what one may be opened for."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from routershift import wire
from routershift.v1 import environment_pb2 as env
from services.environments.gateway.agent import AgentEnvironment
from services.environments.gateway.episode import AgentEpisode
from services.environments.gateway.episodes import Episodes
from services.environments.gateway.model import Texts
from services.environments.gateway.offer import Offer
from services.environments.registry import Configured, find
from shared.errors import InvalidInputError


class Opening:
    """Checks a prompt, and opens an episode for it."""

    def __init__(
        self,
        episodes: Episodes,
        texts: Texts,
        environments: Mapping[str, Configured],
        *,
        max_model_len: int,
        max_tokens: int,
    ) -> None:
        """Args: max_tokens: that the model samples in all turns, where the caller does not say: rollout.max_tokens."""
        self._episodes, self._texts, self._environments = episodes, texts, environments
        self._max_model_len, self._max_tokens = max_model_len, max_tokens

    async def open(
        self,
        environment: str,
        prompt: str,
        messages: Sequence[Mapping[str, str]],
        task: Mapping[str, Any],
        max_tokens: int | None,
    ) -> AgentEpisode:
        """An episode that its caller plays, and that is never trained on.

        Args:
            environment: a name of the kind `agent`, or "".
            prompt: text; or `messages`, of role and content.
            max_tokens: that the model samples in all turns together.

        Raises:
            InvalidInputError, NotFoundError: names the field, its value and what is allowed.
            ApiError: as `Episodes.open`.
        """
        if environment and not issubclass(find(self._environments, environment).kind, AgentEnvironment):
            raise InvalidInputError(
                f"environment is {environment!r}, which the service plays itself: ask for it by Play over gRPC, or "
                "name one of the kind 'agent'"
            )
        if bool(prompt) == bool(messages):
            raise InvalidInputError(
                f"prompt is {prompt[:80]!r} and there are {len(messages)} messages; set one of the two"
            )
        if max_tokens is not None and max_tokens < 1:
            raise InvalidInputError(f"max_tokens is {max_tokens}; allowed: 1 and more")
        _check_task(task)
        # What the agent asks for may differ; a prompt that no turn could follow is known now.
        text = prompt or await asyncio.to_thread(self._texts.chat.render, list(messages))
        ids = await self._texts.encode(text, "prompt", add_special_tokens=bool(prompt))
        if len(ids) >= self._max_model_len:
            raise InvalidInputError(
                f"prompt is {len(ids)} tokens long; allowed: below generation.max_model_len = {self._max_model_len}"
            )
        sampled = max_tokens if max_tokens is not None else self._max_tokens
        return self._episodes.open(Offer(environment, prompt, messages, task, sampled, self._max_model_len))


def _check_task(task: Mapping[str, Any]) -> None:
    """Raises InvalidInputError for what does not travel: numbers that are too large, or too many levels."""
    try:
        made = env.AgentEpisode(task=wire.encode_struct(task))
        env.AgentEpisode.FromString(made.SerializeToString())
    except (ValueError, OverflowError, RecursionError, DecodeError) as error:
        raise InvalidInputError(
            f"task does not travel: {type(error).__name__}; expected an object of JSON with few levels and numbers "
            "that a double holds"
        ) from None
