"""gRPC channels to the services: message sizes, retries and access."""

import json
from collections.abc import Sequence
from typing import Any

import grpc

from routershift.client import credentials, status
from routershift.client.credentials import Access, Shown
from routershift.client.status import MAX_MESSAGE_BYTES

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


def open_channel(target: str, access: Shown | None = None, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
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
    secrets, every = _prepare(target, access, options)
    if secrets is None:
        return grpc.aio.insecure_channel(target, options=every)
    return grpc.aio.secure_channel(target, secrets, options=every)


def open_blocking_channel(target: str, access: Shown | None = None) -> grpc.Channel:
    """As `open_channel`, for calls that block."""
    secrets, every = _prepare(target, access, ())
    if secrets is None:
        return grpc.insecure_channel(target, options=every)
    return grpc.secure_channel(target, secrets, options=every)


def _prepare(
    target: str, access: Shown | None, options: Sequence[tuple[str, Any]]
) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
    access = access or Access()
    secrets = credentials.channel_credentials(access)
    credentials.require_privacy(access.token is not None, target, secrets is not None)
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
    return secrets, every
