"""The errors of the library: a root, and the kinds that its functions and its clients raise.

Each class also inherits the standard exception it specialises, carries one message and pickles. A message names
the field, the value and the fix. `shared.errors` has those of the services beside them.
"""


class RouterShiftError(Exception):
    """Root of all errors with a message meant for the user."""

    status: str | None = None
    """The gRPC status of the call that failed, by name, as INVALID_ARGUMENT; None where no call did."""


class InvalidInputError(RouterShiftError, ValueError):
    """A request, recipe, message or tensor breaks a documented rule."""


class NotFoundError(RouterShiftError, LookupError):
    """Something that was named does not exist."""


class PreconditionError(RouterShiftError, RuntimeError):
    """The input is valid, but not in the present state; a retry alone does not help."""


class MissingDependencyError(RouterShiftError, ImportError):
    """An optional package that the chosen setting needs is not installed."""


class UnauthenticatedError(PreconditionError):
    """The caller shows no token, or one that is not known here."""


class ForbiddenError(PreconditionError):
    """The caller is known, and its roles do not include this method."""


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
