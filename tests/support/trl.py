"""TRL in a virtual environment of its own, on top of the torch and transformers that are installed here."""

from pathlib import Path

from tests.support import venvs

TRL = "trl==1.16.0"


def python() -> Path:
    """Its interpreter. Raises UnavailableError where it cannot be installed; names the command."""
    return venvs.python(TRL, sees_ours=True)
