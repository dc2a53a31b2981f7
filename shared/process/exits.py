"""Exit codes of every process, and which error ends with which."""

from shared.errors import (
    CorruptDataError,
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
    PreconditionError,
    RouterShiftError,
)

EXIT_OK = 0
EXIT_FAILURE = 1  # a crash, or what may pass: a restart may help
EXIT_BAD_INPUT = 2  # something for the user to fix: a restart does not help
EXIT_PORT_TAKEN = 3  # of a service: whoever starts it may choose another port; to people it is EXIT_BAD_INPUT
EXIT_INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT, as shells count
EXIT_CLOSED_PIPE = 141  # nobody reads the output any more, as after `| head`: 128 + SIGPIPE

_FOR_THE_USER = (InvalidInputError, NotFoundError, PreconditionError, CorruptDataError, MissingDependencyError)


def exit_code(error: RouterShiftError) -> int:
    """EXIT_BAD_INPUT for what only the user can fix, else EXIT_FAILURE."""
    return EXIT_BAD_INPUT if isinstance(error, _FOR_THE_USER) else EXIT_FAILURE
