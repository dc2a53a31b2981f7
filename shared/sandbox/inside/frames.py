"""Messages on a socket: four bytes of length, then JSON. Descriptors may come along with a message."""

import json
import socket
from collections.abc import Sequence
from typing import Any

# Both ends read what a program may have written.
MAX_BYTES = 64 << 20


class BrokenLinkError(Exception):
    """The other end is gone, or sends what is no message."""


def send(link: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    """Raises BrokenLinkError where the other end is gone."""
    body = json.dumps(message).encode()
    try:
        socket.send_fds(link, [len(body).to_bytes(4, "big")], descriptors)
        link.sendall(body)
    except OSError as error:
        raise BrokenLinkError(str(error)) from None


def receive(link: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors. Raises BrokenLinkError, and TimeoutError where the socket has one."""
    try:
        head, descriptors, _, _ = socket.recv_fds(link, 4, 4)
        head += _read(link, 4 - len(head))
        size = int.from_bytes(head, "big")
        if size > MAX_BYTES:
            raise BrokenLinkError(f"a message of {size} bytes; at most {MAX_BYTES}")
        return json.loads(_read(link, size)), descriptors
    except TimeoutError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenLinkError(str(error)) from None


def _read(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = link.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise BrokenLinkError("the other end is gone")
        data += piece
    return bytes(data)
