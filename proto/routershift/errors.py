"""The errors of the library: a root, and the kinds that its functions raise.

Each class also inherits the standard exception it specialises, carries one message and pickles. A message names
the field, the value and the fix. `shared.errors` has those of the services beside them.
"""


class RouterShiftError(Exception):
    """Root of all errors with a message meant for the user."""


class InvalidInputError(RouterShiftError, ValueError):
    """A request, recipe, message or tensor breaks a documented rule."""


class NotFoundError(RouterShiftError, LookupError):
    """Something that was named does not exist."""


class PreconditionError(RouterShiftError, RuntimeError):
    """The input is valid, but not in the present state; a retry alone does not help."""


class MissingDependencyError(RouterShiftError, ImportError):
    """An optional package that the chosen setting needs is not installed."""
