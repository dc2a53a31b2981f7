"""Certificates and tokens that a process shows as a client and asks for as a server, from files.

Files are as a Secret is mounted, and are read again when they change.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from shared.errors import InvalidInputError, NotFoundError, RouterShiftError
from shared.rpc.address import is_loopback
from shared.settings import AccessSettings

log = logging.getLogger(__name__)

SCHEME = "Bearer "
_SHORTEST_TOKEN = 32  # characters: 128 bits in hexadecimal

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


def server_credentials(access: AccessSettings) -> grpc.ServerCredentials | None:
    """TLS for a server, mutual where the settings say so; None for a server in clear text.

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
        return (("authorization", SCHEME + self._token.value),) if self._token else ()


def require_privacy(access: AccessSettings, target: str, encrypted: bool) -> None:
    """Raises InvalidInputError where a token would go in clear text over a network."""
    if (access.tokens or access.token) and not encrypted and not is_loopback(target):
        raise InvalidInputError(
            f"tokens would go in clear text to or from {target}; set access.certificate and access.key for a server, "
            "and access.authority for a client"
        )
