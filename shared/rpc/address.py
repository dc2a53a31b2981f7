"""Where a server listens and how it is called: IPv4, IPv6 and names, with the port as text."""

import contextlib
import errno
import socket
from collections.abc import Iterator

from shared.errors import PortTakenError, PreconditionError

_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound


def join(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local(host: str) -> str:
    """The address under which this machine reaches a server of its own that listens at `host`."""
    return _WILDCARDS.get(host, host)


def check_port(host: str, port: int, setting: str) -> None:
    """Refuses a port that cannot be bound, and names the setting.

    Raises:
        PortTakenError: something listens there.
        PreconditionError: `host` is no address of this machine, or the port is for others.
    """
    with _bound(host, port, setting):
        pass


@contextlib.contextmanager
def held_port(host: str, setting: str) -> Iterator[int]:
    """A free port that is bound, without listening, for as long as the block lasts.

    The kernel then gives it to no connection and to nobody who asks for any free port, while a service that names it
    may listen there, also after a restart.

    Raises:
        PreconditionError: `host` cannot be bound; names the setting.
    """
    with _bound(host, 0, setting) as probe:
        yield int(probe.getsockname()[1])


@contextlib.contextmanager
def _bound(host: str, port: int, setting: str) -> Iterator[socket.socket]:
    """A socket at the first address of `host` that this machine has; for a port that is named, all must be free."""
    what = f"{setting} = {port} on {host} cannot be bound"
    with contextlib.ExitStack() as held:
        bound = []
        absent = "it has no address"
        try:
            places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            places, absent = [], _reason(error)
        for family, kind, _, _, place in places:
            try:
                probe = held.enter_context(socket.socket(family, kind))
                if port:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            except OSError as error:
                # A name may have addresses of both families, one of which the machine lacks: gRPC binds the other.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    is_taken = error.errno == errno.EADDRINUSE
                    raise (PortTakenError if is_taken else PreconditionError)(
                        f"{what} ({_reason(error)}); stop what holds it or set {setting} = 0 for a free one"
                    ) from None
                absent = _reason(error)
            else:
                bound.append(probe)
                if not port:
                    break
        if not bound:
            raise PreconditionError(
                f"{what} ({absent}); set host to an address of this machine: 127.0.0.1, ::1, 0.0.0.0 or :: for all"
            )
        yield bound[0]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower()
