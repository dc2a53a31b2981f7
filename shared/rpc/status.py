"""What both ends of a call agree on: status codes of errors, when to come back, and the largest message."""

import grpc

from shared import errors

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


def status_of(error: errors.RouterShiftError) -> grpc.StatusCode:
    return next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
