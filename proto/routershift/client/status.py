"""What both ends of a call agree on: status codes of errors, when to come back, and the largest message."""

from typing import Any, NoReturn

import grpc

from routershift import errors

# A group of 64 samples x 1,024 tokens x 1.2 KiB a token stays below it; gRPC's own default is 4 MiB.
MAX_MESSAGE_BYTES = 128 << 20

STATUS: list[tuple[type[errors.RouterShiftError], grpc.StatusCode]] = [
    (errors.InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.CorruptDataError, grpc.StatusCode.DATA_LOSS),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.PreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.MissingDependencyError, grpc.StatusCode.UNIMPLEMENTED),
]

# How often either end pings a silent connection. A server must allow what its clients do: with gRPC's own floor of
# 300 s it ends the connection after a few such pings (GOAWAY, too_many_pings), and every call on it.
KEEPALIVE_SECONDS = 60.0

# A standard of gRPC's retries: the server says when to come back, and the client's policy waits that long.
PUSHBACK = "grpc-retry-pushback-ms"

_TOO_LARGE = "message larger than max"


def status_of(error: errors.RouterShiftError) -> grpc.StatusCode:
    return next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def raise_typed(error: grpc.RpcError, method: str) -> NoReturn:
    """Raises the error of `routershift.errors` that the server had, with its status: the inverse of `status_of`.

    Args:
        error: of a call, synchronous or not.
        method: that was called, for the message.
    """
    failed: Any = error  # has code, details and trailing_metadata, which the type of grpc does not say
    code = failed.code()
    kind = next((kind for kind, mapped in STATUS if mapped == code), errors.UnavailableError)
    message = f"{method}: {failed.details()}"
    after = [int(value) for name, value in failed.trailing_metadata() or () if name == PUSHBACK]
    raised = kind(message)
    if kind is errors.OverloadedError:
        if _TOO_LARGE in message:  # gRPC's own word for it: a retry does not help
            raised = errors.InvalidInputError(f"{message} bytes; send or ask for less in one call")
        elif after:
            raised = errors.OverloadedError(message, after[0] / 1000)
    raised.status = code.name
    raise raised from None
