"""gRPC channels: message sizes, retries, access, and the errors of a call."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import grpc

from shared import errors
from shared.rpc import credentials, status
from shared.rpc.status import MAX_MESSAGE_BYTES, PUSHBACK, STATUS
from shared.settings import AccessSettings

_RETRY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "3s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    # With a headless Service behind dns:///, every call goes to the next replica.
    "loadBalancingConfig": [{"round_robin": {}}],
}


_TOO_LARGE = "message larger than max"


def open_channel(
    target: str, access: AccessSettings | None = None, options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """A channel over all replicas in turn, with our message sizes, and through no proxy.

    It tries a call that found a service UNAVAILABLE or RESOURCE_EXHAUSTED again, after the time that the service
    asked for, five times in all. A call that a service has begun to work on is never sent again: see
    `shared.rpc.server.begin`.

    Args:
        target: host:port, or dns:///name:port for all replicas.
        access: what it shows and whom it trusts, as files are now; default: clear text.
        options: gRPC's, beside ours.

    Raises:
        NotFoundError: a file of certificates is missing.
        InvalidInputError: a token without TLS beyond this machine.
    """
    access = access or AccessSettings()
    secrets = credentials.channel_credentials(access)
    credentials.require_privacy(access, target, secrets is not None)
    every: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),  # the server knows what it takes, and says it
        ("grpc.service_config", json.dumps(_RETRY)),
        ("grpc.keepalive_time_ms", round(1000 * status.KEEPALIVE_SECONDS)),
        ("grpc.http2.max_pings_without_data", 0),  # a call may work for long, and say nothing
        ("grpc.enable_http_proxy", 0),  # services are on this machine or in its cluster
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        *options,
    ]
    if access.server_name:
        every.append(("grpc.ssl_target_name_override", access.server_name))
    if secrets is None:
        return grpc.aio.insecure_channel(target, options=every)
    return grpc.aio.secure_channel(target, secrets, options=every)


def raise_typed(error: grpc.aio.AioRpcError, method: str) -> NoReturn:
    """Raises the error of `shared.errors` that the server had: the inverse of the interceptor."""
    kind = next((kind for kind, code in STATUS if code == error.code()), errors.UnavailableError)
    message = f"{method}: {error.details()}"
    if kind is errors.OverloadedError and _TOO_LARGE in message:  # gRPC's own word for it: a retry does not help
        raise errors.InvalidInputError(f"{message} bytes; send or ask for less in one call") from None
    after = [int(value) for name, value in error.trailing_metadata() or () if name == PUSHBACK]
    if kind is errors.OverloadedError and after:
        raise errors.OverloadedError(message, after[0] / 1000) from None
    raise kind(message) from None
