"""The paths of episodes: claimed, played with any client of the OpenAI API, and ended."""

from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.environments.gateway.app import Completions
from services.environments.gateway.episode import AgentEpisode
from services.environments.gateway.episodes import Episodes, checked_parts
from services.environments.gateway.errors import of_validation
from services.environments.gateway.schema import Body


class Claim(Body):
    """The body of POST /episodes, which may be empty."""

    environment: str | None = None
    wait_seconds: float = Field(20.0, ge=0, le=600)


class Reward(Body):
    """The body of POST /episodes/ID/reward."""

    reward: float | None = None
    parts: dict[str, float] = Field(default_factory=dict)


def episode_routes(completions: Completions, episodes: Episodes) -> list[Route]:
    async def claim(http: Request) -> Response:
        body = await http.body()
        try:
            asked = Claim.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise of_validation(error) from None
        episode = await episodes.claim(asked.environment, asked.wait_seconds)
        return Response(status_code=204) if episode is None else JSONResponse(_told(http, episode), 201)

    async def models(http: Request) -> Response:
        episodes.find(http.path_params["episode"])
        return JSONResponse(completions.models())

    async def chat(http: Request) -> Response:
        episode = episodes.find(http.path_params["episode"])
        with episode.working():
            return await completions.chat(http, episode)

    async def text(http: Request) -> Response:
        episode = episodes.find(http.path_params["episode"])
        with episode.working():
            return await completions.text(http, episode)

    async def reward(http: Request) -> Response:
        try:
            given = Reward.model_validate_json(await http.body())
        except ValidationError as error:
            raise of_validation(error) from None
        episodes.reward(http.path_params["episode"], given.reward, checked_parts(given.parts))
        return JSONResponse({"id": http.path_params["episode"], "end": "rewarded"})

    async def close(http: Request) -> Response:
        episodes.close(http.path_params["episode"])
        return JSONResponse({"id": http.path_params["episode"], "end": "closed"})

    one = "/episodes/{episode}"
    return [
        Route("/episodes", claim, methods=["POST"]),
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
