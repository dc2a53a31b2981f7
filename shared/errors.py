"""Every error that RouterShift raises on purpose, under one root.

Those of the library, `routershift.errors`, and beside them those of services. Each class also inherits the standard
exception it specialises, carries one message and pickles. A message names the field, the value and the fix.
`shared.rpc.status` maps the classes to gRPC status codes, the command line to exit code 2.
"""

from routershift.errors import (
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
    PreconditionError,
    RouterShiftError,
)

__all__ = [
    "CorruptDataError",
    "DeadlineError",
    "ForbiddenError",
    "InvalidInputError",
    "MissingDependencyError",
    "NotFoundError",
    "OverloadedError",
    "PortTakenError",
    "PreconditionError",
    "RouterShiftError",
    "UnauthenticatedError",
    "UnavailableError",
]


class UnauthenticatedError(PreconditionError):
    """The caller shows no token, or one that is not known here."""


class ForbiddenError(PreconditionError):
    """The caller is known, and its roles do not include this method."""


class PortTakenError(PreconditionError):
    """A port to listen at is in use, or held for another start."""


class OverloadedError(RouterShiftError, RuntimeError):
    """No room for more work now; the same request may succeed after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(RouterShiftError, ConnectionError):
    """A service this one depends on cannot be reached."""


class DeadlineError(RouterShiftError, TimeoutError):
    """A wait reached its deadline."""


class CorruptDataError(RouterShiftError, ValueError):
    """Bytes that fail their checksum or contradict their own description."""
