"""Certificates that a process asks for and shows as a server, from files; `routershift.client` has a caller's part."""

from typing import Any

import grpc

from routershift.client import credentials
from routershift.client.credentials import Watched
from shared.settings import AccessSettings


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


def require_privacy(access: AccessSettings, host: str, encrypted: bool) -> None:
    """Raises InvalidInputError where a server would be sent tokens in clear text over a network."""
    credentials.require_privacy(bool(access.tokens or access.token), host, encrypted)
