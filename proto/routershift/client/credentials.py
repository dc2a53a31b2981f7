"""Certificates and a token that a caller shows, from files.

Files are as a Secret is mounted, and are read again when they change.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import grpc

from routershift.errors import InvalidInputError, NotFoundError, RouterShiftError
from routershift.loopback import is_loopback

log = logging.getLogger(__name__)

SCHEME = "Bearer "
_SHORTEST_TOKEN = 32  # characters: 128 bits in hexadecimal
_VARIABLE = "ROUTERSHIFT_ACCESS__"  # what the names of environment variables begin with, as for the services

ValueT = TypeVar("ValueT")


class Shown(Protocol):
    """What a caller shows and whom it trusts: files, or None."""

    @property
    def authority(self) -> Path | None: ...
    @property
    def certificate(self) -> Path | None: ...
    @property
    def key(self) -> Path | None: ...
    @property
    def token(self) -> Path | None: ...
    @property
    def server_name(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Access:
    """What a client shows and whom it trusts; all are files but `server_name`, certificates and keys in PEM."""

    authority: Path | None = None  # certificates that sign those of servers: calls then speak TLS
    certificate: Path | None = None  # of this client, where the server asks for one
    key: Path | None = None  # of the certificate
    token: Path | None = None  # the token to show
    server_name: str | None = None  # the name in the server's certificate; None: that in its address

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As the variables say that services read too: ROUTERSHIFT_ACCESS__AUTHORITY, ...__TOKEN and so on."""
        said = {field.name: environment.get(_VARIABLE + field.name.upper()) for field in fields(cls)}
        name = said.pop("server_name")
        return cls(**{key: Path(value) for key, value in said.items() if value}, server_name=name or None)

    def __post_init__(self) -> None:
        """Raises InvalidInputError where one of certificate and key is missing."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidInputError("access.certificate and access.key go together; set both or none")


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
            raise _unreadable(error) from None

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


def _unreadable(error: OSError) -> NotFoundError:
    return NotFoundError(
        f"{error.filename} cannot be read ({error.strerror}); check the table [access], or what Access names"
    )


def read_token(file: Path) -> str:
    """A token to show: the whole file, less white space around it.

    Raises:
        InvalidInputError: it is none.
    """
    token = file.read_text(encoding="ascii", errors="replace").strip()
    check_length(token, f"the token in {file}")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInputError(f"the token in {file} holds more than one word of ASCII; expected a token alone")
    return token


def check_length(token: str, where: str) -> None:
    """Raises InvalidInputError for a token that could be guessed."""
    if len(token) < _SHORTEST_TOKEN:
        raise InvalidInputError(
            f"{where} has {len(token)} characters; expected at least {_SHORTEST_TOKEN}, as from `openssl rand -hex 32`"
        )


def channel_credentials(access: Shown) -> grpc.ChannelCredentials | None:
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
        raise _unreadable(error) from None


class Bearer:
    """The token that a caller shows, as its file is by then."""

    def __init__(self, access: Shown) -> None:
        """Raises NotFoundError or InvalidInputError for a file that is missing or no token."""
        file = access.token
        self._token = Watched([file], lambda: read_token(file)) if file else None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """For a call; empty where there is no token."""
        return (("authorization", SCHEME + self._token.value),) if self._token else ()


def require_privacy(has_tokens: bool, target: str, encrypted: bool) -> None:
    """Raises InvalidInputError where a token would go in clear text over a network."""
    if has_tokens and not encrypted and not is_loopback(target):
        raise InvalidInputError(
            f"tokens would go in clear text to or from {target}; set access.certificate and access.key for a server, "
            "and access.authority for a client"
        )
