"""The paths of episodes: opened or claimed, played with any client of the OpenAI API, ended, and read."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.environments.gateway.app import Completions, unless_gone
from services.environments.gateway.body import Body, read_body
from services.environments.gateway.conversation import plain
from services.environments.gateway.episode import AgentEpisode
from services.environments.gateway.episodes import MAX_WAIT_SECONDS, WAIT_SECONDS, Episodes
from services.environments.gateway.errors import ApiError
from services.environments.gateway.opening import Opening
from services.environments.gateway.record_json import record_json


class PromptMessage(Body):
    """A message of the prompt of an episode."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(plain)]


class Start(Body):
    """The body of POST /episodes, which may be empty: with a prompt it opens an episode, else it claims one."""

    environment: str | None = None
    wait_seconds: float | None = Field(None, ge=0, le=MAX_WAIT_SECONDS)
    prompt: str | None = Field(None, min_length=1)
    messages: tuple[PromptMessage, ...] | None = Field(None, min_length=1)
    task: dict[str, JsonValue] | None = None
    max_tokens: int | None = Field(None, ge=1)

    @property
    def opens(self) -> bool:
        return self.prompt is not None or self.messages is not None

    def check(self) -> None:
        """Raises ApiError for fields of the one form in the other."""
        if self.opens and self.wait_seconds is not None:
            raise ApiError(
                f"wait_seconds is {self.wait_seconds:g}, and an episode that is opened with a prompt waits for nobody; "
                "leave it out",
                param="wait_seconds",
            )
        if self.prompt is not None and self.messages is not None:
            raise ApiError("prompt and messages are set; set one of them", param="messages")
        for field in ("task", "max_tokens"):
            if not self.opens and getattr(self, field) is not None:
                raise ApiError(
                    f"{field} is set, and there is no prompt: an episode that is claimed has its own; set prompt or "
                    "messages to open one",
                    param=field,
                )


class Reward(Body):
    """The body of POST /episodes/ID/reward: with `turn` it rewards that turn alone, else it ends the episode."""

    reward: float | None = None
    parts: dict[str, float] = Field(default_factory=dict)
    turn: int | None = None
    turn_rewards: tuple[float | None, ...] | None = None  # one for each turn, null for none

    def check(self) -> None:
        """Raises ApiError for fields that say nothing of a turn."""
        if self.turn is None:
            return
        if self.reward is None:
            raise ApiError("reward is missing; set it to a finite number", param="reward")
        for field in ("parts", "turn_rewards"):
            if getattr(self, field):
                raise ApiError(f"{field} is of the whole episode, and turn is {self.turn}; leave one out", param=field)


def episode_routes(completions: Completions, episodes: Episodes, opening: Opening) -> list[Route]:
    async def start(http: Request) -> Response:
        asked = read_body(Start, await http.body() or b"{}")
        asked.check()
        episode: AgentEpisode | None
        if asked.opens:
            messages = [message.model_dump() for message in asked.messages or ()]
            episode = await opening.open(
                asked.environment or "", asked.prompt or "", messages, asked.task or {}, asked.max_tokens
            )
        else:
            seconds = WAIT_SECONDS if asked.wait_seconds is None else asked.wait_seconds
            agent = http.path_params.get("agent")
            episode = await unless_gone(http, episodes.claim(asked.environment, seconds, agent))
        return Response(status_code=204) if episode is None else JSONResponse(_told(http, episode), 201)

    async def get(http: Request) -> Response:
        identity = http.path_params["episode"]
        return JSONResponse(record_json(episodes.get(identity)))

    async def models(http: Request) -> Response:
        episodes.find(http.path_params["episode"])
        return JSONResponse(completions.models())

    async def chat(http: Request) -> Response:
        episode = episodes.find(http.path_params["episode"])
        return await completions.chat(http, episode)

    async def text(http: Request) -> Response:
        episode = episodes.find(http.path_params["episode"])
        return await completions.text(http, episode)

    async def reward(http: Request) -> Response:
        identity = http.path_params["episode"]
        given = read_body(Reward, await http.body())
        given.check()
        if given.turn is not None and given.reward is not None:
            episodes.reward_turns(identity, {given.turn: given.reward})
            return JSONResponse({"id": identity, "turn": given.turn, "reward": given.reward})
        turns = {turn: each for turn, each in enumerate(given.turn_rewards or ()) if each is not None}
        earned = episodes.reward(identity, given.reward, given.parts, turns)
        return JSONResponse({"id": identity, "end": "rewarded", "reward": earned})

    async def close(http: Request) -> Response:
        episodes.close(http.path_params["episode"])
        return JSONResponse({"id": http.path_params["episode"], "end": "closed"})

    one = "/episodes/{episode}"
    return [
        Route("/episodes", start, methods=["POST"]),
        Route(one, get, methods=["GET"]),
        Route(one, close, methods=["DELETE"]),
        Route(f"{one}/reward", reward, methods=["POST"]),
        Route(f"{one}/v1/models", models, methods=["GET"]),
        Route(f"{one}/v1/chat/completions", chat, methods=["POST"]),
        Route(f"{one}/v1/completions", text, methods=["POST"]),
    ]


def _told(http: Request, episode: AgentEpisode) -> dict[str, object]:
    offer = episode.offer
    return {
        "id": episode.id,
        "base_url": f"{str(http.base_url).rstrip('/')}/episodes/{episode.id}/v1",
        "environment": offer.environment,
        "prompt": offer.prompt,
        "messages": list(offer.messages),
        "task": dict(offer.task),
    }
