"""A verifier that runs elsewhere: a Reward service by gRPC, or an endpoint that speaks JSON over HTTP."""

import asyncio
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from routershift.client.requests import Message
from routershift.v1 import trajectory_pb2 as pb
from services.reward.verifiers.base import AsyncVerifier, Item, Parts, Verdict, VerifierSettings
from services.reward.verifiers.remote import http
from shared.clients import RewardClient
from shared.errors import DeadlineError, InvalidInputError, OverloadedError, PreconditionError, UnavailableError
from shared.settings import AccessSettings

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_RETRIED = (UnavailableError, OverloadedError, DeadlineError)
_MAX_BACKOFF_SECONDS = 5.0


class RemoteSettings(VerifierSettings):
    address: str = Field(
        pattern=r"^(grpcs?|https?)://[^\s@]+$",
        description="grpc://host:port, grpcs://host:port, https://host/path or http://host/path",
    )
    verifier: str | None = Field(None, description="name of the verifier at a grpc:// or grpcs:// address")
    token_file: Path | None = Field(
        None, description="file with a bearer token, read for every request; only for grpcs, https and loopback"
    )
    ca_file: Path | None = Field(
        None, description="certificates to trust; default: the system's for https; grpcs needs it"
    )
    certificate_file: Path | None = Field(None, description="to show to a grpcs address that asks for one")
    key_file: Path | None = Field(None, description="of the certificate")
    attempts: int = Field(5, ge=1, description="requests for one item, while its deadline lasts")
    attempt_seconds: float = Field(10.0, gt=0, description="deadline of one request")
    backoff_seconds: float = Field(0.2, gt=0, description="wait after the first failure; it doubles, up to 5 s")
    in_flight: int = Field(32, ge=1, description="requests at the same time")

    @model_validator(mode="after")
    def _fits_the_address(self) -> Self:
        parts = urlsplit(self.address)
        if parts.scheme.startswith("grpc") != (self.verifier is not None):
            raise ValueError("verifier is the name at a grpc:// address or a grpcs:// one; set it there and only there")
        if (parts.scheme == "grpcs" and not self.ca_file) or (parts.scheme == "grpc" and self.ca_file):
            raise ValueError("ca_file goes with grpcs:// and https://; a grpcs:// address needs it")
        if (self.certificate_file or self.key_file) and parts.scheme != "grpcs":
            raise ValueError("certificate_file and key_file are for grpcs://")
        if self.token_file and parts.scheme in ("grpc", "http") and parts.hostname not in _LOOPBACK:
            raise ValueError(f"token_file would go in clear text to {parts.hostname}; use grpcs:// or https://")
        return self


class RemoteVerifier(AsyncVerifier):
    """Reference: that of the verifier at the other end.

    HTTP: POST {"prompt", "response", "reference"}, and "messages" of role and content where the response is not all
    that followed the prompt; the answer is 200 {"reward": 0.5, "parts": {"correct": 0, ...}},
    or 400 or 422 where the reference is unusable. Redirects are not followed. Requests that meet no server, a busy
    one (408, 429, 5xx) or no answer in time are repeated, with exponential backoff and jitter.
    """

    name: ClassVar[str] = "remote"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a verifier behind a gRPC or HTTP address"
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "description": "what the verifier at the other end reads",
    }
    Settings: ClassVar[type[VerifierSettings]] = RemoteSettings
    settings: RemoteSettings

    def __init__(self, settings: VerifierSettings) -> None:
        super().__init__(settings)
        self._limit = asyncio.Semaphore(self.settings.in_flight)
        self._client: RewardClient | None = None  # a channel belongs to the loop that opens it

    async def verify(self, item: Item, others: Parts) -> Verdict:
        wait = self.settings.backoff_seconds
        for attempt in range(1, self.settings.attempts + 1):
            try:
                async with self._limit:
                    return await (self._by_http(item) if self.settings.verifier is None else self._by_grpc(item))
            except _RETRIED:
                if attempt == self.settings.attempts:
                    raise
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  # spreads retries, guards nothing
            wait = min(2 * wait, _MAX_BACKOFF_SECONDS)
        raise AssertionError("attempts is at least 1")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.__aexit__()
            self._client = None

    async def _by_grpc(self, item: Item) -> Verdict:
        settings = self.settings
        if self._client is None:
            access = AccessSettings(
                authority=settings.ca_file,
                certificate=settings.certificate_file,
                key=settings.key_file,
                token=settings.token_file,
            )
            self._client = RewardClient(settings.address.partition("://")[2], settings.attempt_seconds, access)
        response = self._conversation(item) if item.messages else self.text(item)
        (score,) = await self._client.score(settings.verifier or "", item.prompt, [response], item.reference)
        if score.outcome == pb.OUTCOME_REFUSED:
            raise InvalidInputError(f"{settings.address}: {score.error}")
        if score.outcome != pb.OUTCOME_SCORED:
            outcome = pb.Outcome.Name(score.outcome).removeprefix("OUTCOME_").lower()
            raise UnavailableError(f"{settings.address}: verifier {settings.verifier} {outcome}: {score.error}")
        return Verdict(score.reward, dict(score.parts))

    async def _by_http(self, item: Item) -> Verdict:
        settings = self.settings
        headers = {"Authorization": f"Bearer {_token(settings.token_file)}"} if settings.token_file else {}
        body: dict[str, Any] = {"prompt": item.prompt, "response": self.text(item), "reference": dict(item.reference)}
        if item.messages:
            body["messages"] = self._conversation(item)
        try:
            async with asyncio.timeout(settings.attempt_seconds):
                status, answer = await http.post_json(settings.address, body, headers, settings.ca_file)
        except TimeoutError:
            raise DeadlineError(
                f"{settings.address}: no answer within {settings.attempt_seconds} s; if slow, raise attempt_seconds"
            ) from None
        if status in (400, 422):
            raise InvalidInputError(f"{settings.address} refuses the item: {str(answer)[:200]}")
        if status in (408, 429) or status >= 500:
            raise UnavailableError(f"{settings.address} answers {status}: {str(answer)[:200]}")
        if status != 200:
            raise PreconditionError(f"{settings.address} answers {status}: {str(answer)[:200]}; expected 200")
        return _verdict(settings.address, answer)

    def _conversation(self, item: Item) -> list[Message]:
        said = item.with_response(self.text(item)).conversation()
        return [Message(role=message["role"], content=message["content"]) for message in said]


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise PreconditionError(f"token_file {file} cannot be read: {error.strerror}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise PreconditionError(f"token_file {file} holds no token; expected one line of printable ASCII")
    return token


def _verdict(address: str, answer: Any) -> Verdict:
    """Raises PreconditionError for an answer of another form."""
    known = answer if isinstance(answer, Mapping) else {}
    reward: Any = known.get("reward")
    parts = known.get("parts")
    if not _is_number(reward) or not isinstance(parts, Mapping) or not all(map(_is_number, parts.values())):
        raise PreconditionError(
            f"{address} answers {str(answer)[:200]}; expected {{'reward': number, 'parts': {{name: number}}}}"
        )
    if "correct" not in parts:
        raise PreconditionError(f"{address} gives parts {', '.join(parts)}; expected 'correct' among them")
    return Verdict(float(reward), {str(name): float(value) for name, value in parts.items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
