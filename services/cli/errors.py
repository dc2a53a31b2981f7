"""Errors of the command line itself."""

from shared.errors import RouterShiftError
from shared.process.exits import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_PORT_TAKEN, exit_code

__all__ = ["ServiceEndedError", "exit_code_of"]


class ServiceEndedError(RouterShiftError):
    """A process ended and is not started again; `code` is its exit code, negative where a signal ended it."""

    def __init__(self, service: str, code: int, message: str) -> None:
        super().__init__(service, code, message)
        self.service = service
        self.code = code
        self._message = message

    @property
    def is_said(self) -> bool:
        """Whether the process has told the user itself what there is to fix."""
        return self.code in (EXIT_BAD_INPUT, EXIT_PORT_TAKEN)

    def __str__(self) -> str:
        return self._message


def exit_code_of(error: RouterShiftError) -> int:
    """2 for what the user can fix, whichever process found it, else 1."""
    if isinstance(error, ServiceEndedError):
        return EXIT_BAD_INPUT if error.is_said else EXIT_FAILURE
    return exit_code(error)
