"""One JSON request over HTTP/1.1 in the event loop: cancelled at once, no threads, no redirects."""

import asyncio
import http.client
import io
import json
import ssl
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.errors import CorruptDataError, PreconditionError, UnavailableError

_MAX_ANSWER_BYTES = 1 << 20


async def post_json(url: str, body: Any, headers: Mapping[str, str], ca_file: Path | None) -> tuple[int, Any]:
    """Status and decoded body; the body is text where the status is not 200.

    Raises:
        UnavailableError: no connection, or one that broke before the answer was complete.
        CorruptDataError: an answer that is no HTTP or no JSON, or longer than 1 MiB.
        PreconditionError: a certificate that is not trusted.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    payload = json.dumps(body).encode()
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        "Accept: application/json",
        f"Content-Length: {len(payload)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    try:
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if secure else 80), ssl=_context(ca_file) if secure else None
        )
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode("ascii") + payload)
            await writer.drain()
            raw = await _read(reader, url)
        finally:
            writer.close()
    except ssl.SSLCertVerificationError as error:
        raise PreconditionError(f"{url}: {error.verify_message}; set ca_file to the certificate to trust") from None
    except OSError as error:
        raise UnavailableError(f"{url}: {error}") from None
    return _parse(url, raw)


async def _read(reader: asyncio.StreamReader, url: str) -> bytes:
    raw = bytearray()
    while chunk := await reader.read(1 << 16):
        raw += chunk
        if len(raw) > _MAX_ANSWER_BYTES:
            raise CorruptDataError(f"{url} answers with more than {_MAX_ANSWER_BYTES} bytes")
    return bytes(raw)


class _Received:
    """What http.client needs of a socket: bytes that are all there."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(self._raw)


def _parse(url: str, raw: bytes) -> tuple[int, Any]:
    answer = http.client.HTTPResponse(_Received(raw), method="POST")  # type: ignore[arg-type]
    try:
        answer.begin()
        body = answer.read()
    except (http.client.IncompleteRead, http.client.RemoteDisconnected):
        raise UnavailableError(f"{url}: the connection ended before the answer did") from None
    except http.client.HTTPException as error:
        raise CorruptDataError(f"{url} does not answer in HTTP: {type(error).__name__}") from None
    if answer.status != 200:
        return answer.status, body.decode(errors="replace")
    try:
        return answer.status, json.loads(body)
    except (ValueError, RecursionError):
        raise CorruptDataError(f"{url} answers with something that is not JSON: {body[:100]!r}") from None


@lru_cache(maxsize=8)
def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise PreconditionError(f"ca_file {ca_file} cannot be read: {error}") from None
