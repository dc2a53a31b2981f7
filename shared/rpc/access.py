"""Who may call a gRPC server, and how often.

A token has roles, and every method names the roles that it is for; one that names none is for operators.
"""

import hashlib
import hmac
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote

from prometheus_client import Counter

from routershift.client.credentials import SCHEME, Watched, check_length
from routershift.loopback import is_loopback
from shared.errors import ForbiddenError, InvalidInputError, OverloadedError, RouterShiftError, UnauthenticatedError
from shared.settings import AccessSettings, ServerSettings

HEALTH = "/grpc.health."  # probes know no secrets
GATEWAY = "the gateway"  # all of its paths: they sample from the policy

REFUSED = Counter(
    "routershift_calls_refused_total",
    "GRPC calls that the server turned away: no known token, a token for other methods, more calls than it takes, "
    "a request that did not arrive in time or is too long",
    ["reason"],
)
for _reason in ("unauthenticated", "forbidden", "overloaded", "late", "too_large"):
    REFUSED.labels(_reason)


class Role(StrEnum):
    """What a token is for."""

    SAMPLE = "sample"  # ask a policy for responses
    PLAY = "play"  # play episodes in environments, with the policy or with another
    SCORE = "score"  # ask for rewards
    OPERATE = "operate"  # everything, weights and the learner included


_ALL = frozenset(Role)
_SAMPLE = frozenset({Role.SAMPLE, Role.OPERATE})
_PLAY = frozenset({Role.PLAY, Role.OPERATE})
_SCORE = frozenset({Role.SCORE, Role.OPERATE})
_OPERATE = frozenset({Role.OPERATE})

ROLES = {
    "/routershift.v1.GenerationService/Generate": _SAMPLE,
    "/routershift.v1.GenerationService/GenerateStream": _SAMPLE,
    "/routershift.v1.GenerationService/GetStatus": _SAMPLE,
    "/routershift.v1.GenerationService/UpdateWeights": _OPERATE,
    "/routershift.v1.EnvironmentService/Reset": _PLAY,
    "/routershift.v1.EnvironmentService/Step": _PLAY,
    "/routershift.v1.EnvironmentService/Close": _PLAY,
    "/routershift.v1.EnvironmentService/Play": _PLAY,
    "/routershift.v1.EnvironmentService/ListEnvironments": _PLAY,
    # What the gateway does for agents has its role on both ways in.
    "/routershift.v1.EnvironmentService/OpenEpisode": _SAMPLE,
    "/routershift.v1.EnvironmentService/ClaimEpisode": _SAMPLE,
    "/routershift.v1.EnvironmentService/RewardTurn": _SAMPLE,
    "/routershift.v1.EnvironmentService/RewardEpisode": _SAMPLE,
    "/routershift.v1.EnvironmentService/CloseEpisode": _SAMPLE,
    "/routershift.v1.EnvironmentService/GetEpisode": _SAMPLE,
    GATEWAY: _SAMPLE,
    "/routershift.v1.RewardService/Score": _SCORE,
    "/routershift.v1.RewardService/ListVerifiers": _SCORE,
    "/routershift.v1.LearnerService/GetStatus": _OPERATE,
    "/routershift.v1.LearnerService/Checkpoint": _OPERATE,
    "/routershift.v1.LearnerService/Pause": _OPERATE,
    "/routershift.v1.LearnerService/Resume": _OPERATE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ALL,
}


class AccessControl:
    """Admits calls to one server by token and role, by rate, and by how many are in progress."""

    def __init__(self, access: AccessSettings, settings: ServerSettings) -> None:
        """Raises NotFoundError or InvalidInputError for a file of tokens that is missing or wrong."""
        file = access.tokens
        self._tokens = Watched([file], lambda: _read_tokens(file)) if file else None
        self._settings = settings
        self._calls = 0
        self._buckets: dict[bytes, _Bucket] = {}

    @contextmanager
    def admit(self, method: str, metadata: Sequence[tuple[str, str | bytes]], peer: str = "") -> Iterator[None]:
        """One call, for as long as the block lasts.

        Args:
            method: as in /routershift.v1.RewardService/Score.
            metadata: of the call.
            peer: address of the caller as gRPC gives it, as in ipv4:10.0.0.7:50312 or ipv6:%5B::1%5D:50312.

        Raises:
            UnauthenticatedError, ForbiddenError: by the caller's token.
            OverloadedError: too many calls at once, or too many in a second of this caller.
        """
        try:
            self._take(self._caller(method, metadata, peer))
        except RouterShiftError as error:
            REFUSED.labels(_REASONS.get(type(error), "overloaded")).inc()
            raise
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def _caller(self, method: str, metadata: Sequence[tuple[str, str | bytes]], peer: str) -> bytes:
        """The digest of the caller's token; all callers are one where none is asked for."""
        if self._tokens is None:
            # Who reaches a port to sample or to score must not thereby be able to stop a run or to change its weights.
            if ROLES.get(method, _OPERATE) == _OPERATE and not is_loopback(unquote(peer)):
                raise ForbiddenError(
                    f"{method} is for operate, and this server asks for no tokens: it takes the call from its own "
                    f"machine alone, not from {peer or 'nowhere'}; call it there, or set access.tokens"
                )
            return b""
        shown = next((str(value) for name, value in metadata if name == "authorization"), "")
        if not shown.startswith(SCHEME):
            raise UnauthenticatedError("this server asks for a bearer token; set access.token to the file of yours")
        digest = _digest(shown.removeprefix(SCHEME))
        roles: frozenset[Role] = frozenset()
        for known, its in self._tokens.value.items():
            if hmac.compare_digest(known, digest):
                roles = its
        if not roles:
            raise UnauthenticatedError("the bearer token is not known here; it may have been replaced")
        if not roles & ROLES.get(method, _OPERATE):
            raise ForbiddenError(
                f"{method} is for {_names(ROLES.get(method, _OPERATE))}; this token is for {_names(roles)}"
            )
        return digest

    def _take(self, caller: bytes) -> None:
        if self._calls >= self._settings.max_calls:
            raise OverloadedError(f"{self._calls} calls are in progress; max_calls = {self._settings.max_calls}")
        if (rate := self._settings.calls_per_second) is None:
            return
        if caller not in self._buckets:  # tokens that were replaced take theirs with them
            known = self._tokens.value if self._tokens else ()
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if key in known}
            self._buckets[caller] = _Bucket(rate)
        if wait := self._buckets[caller].take(time.monotonic()):
            raise OverloadedError(f"more than calls_per_second = {rate:g} of one caller", wait)


class _Bucket:
    """A token bucket that holds one second's worth, and at least one call."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate)
        self._level = self._most
        self._at = time.monotonic()

    def take(self, now: float) -> float:
        """0 and the call is counted, or the seconds until there is room for it."""
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0.0


_REASONS: dict[type[RouterShiftError], str] = {UnauthenticatedError: "unauthenticated", ForbiddenError: "forbidden"}


def _read_tokens(file: Path) -> dict[bytes, frozenset[Role]]:
    """Lines of roles and a token, as in `sample,score 5f0c...`; empty lines and those that begin with # say nothing."""
    tokens: dict[bytes, frozenset[Role]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            roles, token = words
            named = frozenset(Role(role) for role in roles.split(","))
        except ValueError:
            raise InvalidInputError(
                f"line {number} of {file} is not of the form ROLE[,ROLE] TOKEN; roles are {_names(_ALL)}"
            ) from None
        check_length(token, f"the token in line {number} of {file}")
        digest = _digest(token)
        tokens[digest] = tokens.get(digest, frozenset()) | named
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _names(roles: frozenset[Role]) -> str:
    return " and ".join(sorted(roles))
