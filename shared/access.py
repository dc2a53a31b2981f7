"""Who may come in at a gRPC door, how often, and what a caller shows there.

Certificates and tokens are files, as a Secret is mounted, and are read again when they change. A token has roles, and
every method names the roles that it is for; one that names none is for operators.
"""

import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from prometheus_client import Counter

from shared.errors import InvalidInputError, NotFoundError, OverloadedError, PreconditionError, RouterShiftError
from shared.settings import AccessSettings, Door

log = logging.getLogger(__name__)

HEALTH = "/grpc.health."  # probes know no secrets
_SHORTEST_TOKEN = 32  # characters: 128 bits in hexadecimal
_SCHEME = "Bearer "

REFUSED = Counter("routershift_door_refused_total", "Calls that a gRPC door turned away", ["reason"])


class Role(StrEnum):
    """What a token is for."""

    SAMPLE = "sample"  # ask a policy for responses
    SCORE = "score"  # ask for rewards
    OPERATE = "operate"  # everything, weights and the learner included


_ALL = frozenset(Role)
_SAMPLE = frozenset({Role.SAMPLE, Role.OPERATE})
_SCORE = frozenset({Role.SCORE, Role.OPERATE})
_OPERATE = frozenset({Role.OPERATE})

ROLES = {
    "/routershift.v1.GenerationService/Generate": _SAMPLE,
    "/routershift.v1.GenerationService/GenerateStream": _SAMPLE,
    "/routershift.v1.GenerationService/GetStatus": _SAMPLE,
    "/routershift.v1.GenerationService/UpdateWeights": _OPERATE,
    "/routershift.v1.RewardService/Score": _SCORE,
    "/routershift.v1.RewardService/ListVerifiers": _SCORE,
    "/routershift.v1.LearnerService/GetStatus": _OPERATE,
    "/routershift.v1.LearnerService/Checkpoint": _OPERATE,
    "/routershift.v1.LearnerService/Pause": _OPERATE,
    "/routershift.v1.LearnerService/Resume": _OPERATE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ALL,
}


class UnauthenticatedError(PreconditionError):
    """The caller shows no token, or one that is not known here."""


class ForbiddenError(PreconditionError):
    """The caller is known, and its roles do not include this method."""


ValueT = TypeVar("ValueT")


class Watched(Generic[ValueT]):
    """What files say, read again when one of them changes. What cannot be read leaves the last good value in force."""

    def __init__(self, files: Sequence[Path], read: Callable[[], ValueT]) -> None:
        """Raises NotFoundError where a file is missing, and what `read` raises."""
        self._files = files
        self._read = read
        try:
            self._seen = self._stamp()
            self._value = read()
        except OSError as error:
            raise NotFoundError(
                f"{error.filename} cannot be read ({error.strerror}); check the table [access]"
            ) from None

    def changed(self) -> bool:
        """Whether the value is another than at the last question."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return False
            self._seen = stamp
            self._value = self._read()
        except (OSError, RouterShiftError) as error:
            log.error("%s changed and cannot be read; what it said before stays in force: %s", self._files[0], error)
            return False
        log.info("%s changed and was read again", self._files[0])
        return True

    @property
    def value(self) -> ValueT:
        self.changed()
        return self._value

    def _stamp(self) -> list[tuple[int, int, int]]:
        stats = [file.stat() for file in self._files]
        return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats]


class Doorkeeper:
    """Lets calls in at one door: by token and role, by rate, and by how many are there already."""

    def __init__(self, access: AccessSettings, door: Door) -> None:
        """Raises NotFoundError or InvalidInputError for a file of tokens that is missing or wrong."""
        file = access.tokens
        self._tokens = Watched([file], lambda: _read_tokens(file)) if file else None
        self._door = door
        self._calls = 0
        self._buckets: dict[bytes, _Bucket] = {}

    @contextmanager
    def admit(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> Iterator[None]:
        """One call, for as long as the block lasts.

        Args:
            method: as in /routershift.v1.RewardService/Score.
            metadata: of the call.

        Raises:
            UnauthenticatedError, ForbiddenError: by the caller's token.
            OverloadedError: too many calls at once, or too many in a second of this caller.
        """
        try:
            self._take(self._caller(method, metadata))
        except RouterShiftError as error:
            REFUSED.labels(_REASONS.get(type(error), "overloaded")).inc()
            raise
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def _caller(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> bytes:
        """The digest of the caller's token; all callers are one where none is asked for."""
        if self._tokens is None:
            return b""
        shown = next((str(value) for name, value in metadata if name == "authorization"), "")
        if not shown.startswith(_SCHEME):
            raise UnauthenticatedError("this door asks for a bearer token; set access.token to the file of yours")
        digest = _digest(shown.removeprefix(_SCHEME))
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
        if self._calls >= self._door.max_calls:
            raise OverloadedError(f"{self._calls} calls are in progress; max_calls = {self._door.max_calls}")
        if (rate := self._door.calls_per_second) is None:
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
        _check_length(token, f"the token in line {number} of {file}")
        digest = _digest(token)
        tokens[digest] = tokens.get(digest, frozenset()) | named
    return tokens


def read_token(file: Path) -> str:
    """A token to show: the whole file, less white space around it.

    Raises:
        InvalidInputError: it is none.
    """
    token = file.read_text(encoding="ascii", errors="replace").strip()
    _check_length(token, f"the token in {file}")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInputError(f"the token in {file} holds more than one word of ASCII; expected a token alone")
    return token


def _check_length(token: str, where: str) -> None:
    if len(token) < _SHORTEST_TOKEN:
        raise InvalidInputError(
            f"{where} has {len(token)} characters; expected at least {_SHORTEST_TOKEN}, as from `openssl rand -hex 32`"
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _names(roles: frozenset[Role]) -> str:
    return " and ".join(sorted(roles))


def server_credentials(access: AccessSettings) -> grpc.ServerCredentials | None:
    """TLS for a door, mutual where the settings say so; None for a door in clear text.

    A handshake uses what the files say by then.

    Raises:
        NotFoundError: a file is missing.
    """
    certificate, key = access.certificate, access.key
    if certificate is None or key is None:
        return None
    authority = access.authority

    def read() -> Any:
        pair = (key.read_bytes(), certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authority.read_bytes() if authority else None)

    watched = Watched([certificate, key, *([authority] if authority else [])], read)

    def newer() -> Any:
        return watched.value if watched.changed() else None

    return grpc.dynamic_ssl_server_credentials(watched.value, newer, access.mutual)


def channel_credentials(access: AccessSettings) -> grpc.ChannelCredentials | None:
    """TLS for a channel, as the files are now; None for one in clear text.

    Raises:
        NotFoundError: a file is missing.
    """
    if access.authority is None:
        return None
    try:
        return grpc.ssl_channel_credentials(
            access.authority.read_bytes(),
            access.key.read_bytes() if access.key else None,
            access.certificate.read_bytes() if access.certificate else None,
        )
    except OSError as error:
        raise NotFoundError(f"{error.filename} cannot be read ({error.strerror}); check the table [access]") from None


class Bearer:
    """The token that a caller shows, as its file is by then."""

    def __init__(self, access: AccessSettings) -> None:
        """Raises NotFoundError or InvalidInputError for a file that is missing or no token."""
        file = access.token
        self._token = Watched([file], lambda: read_token(file)) if file else None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """For a call; empty where there is no token."""
        return (("authorization", _SCHEME + self._token.value),) if self._token else ()


def is_loopback(target: str) -> bool:
    """Whether a gRPC target or a host stays on this machine."""
    if target.startswith("unix:"):
        return True
    host = target.removeprefix("dns:").rsplit("/", 1)[-1].removeprefix("ipv4:").removeprefix("ipv6:")
    if host.count(":") == 1 or "]" in host:
        host = host.rpartition(":")[0] if not host.endswith("]") else host
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_privacy(access: AccessSettings, target: str, encrypted: bool) -> None:
    """Raises InvalidInputError where a token would go in clear text over a network."""
    if (access.tokens or access.token) and not encrypted and not is_loopback(target):
        raise InvalidInputError(
            f"tokens would go in clear text to or from {target}; set access.certificate and access.key for a door, "
            "and access.authority for a caller"
        )
