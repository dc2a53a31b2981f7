"""Every error that RouterShift raises on purpose, under one root.

Those of the library, `routershift.errors`, and beside them those of services. Each class also inherits the standard
exception it specialises, carries one message and pickles. A message names the field, the value and the fix.
`routershift.client.status` maps the classes to gRPC status codes, the command line to exit code 2.
"""

from routershift.errors import (
    CorruptDataError,
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    RouterShiftError,
    UnauthenticatedError,
    UnavailableError,
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


class PortTakenError(PreconditionError):
    """A port to listen at is in use, or held for another start."""
