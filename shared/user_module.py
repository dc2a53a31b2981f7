"""A Python file of the user's own: loaded from its text, with errors that say where in it."""

import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from shared.errors import InvalidInputError, NotFoundError
from shared.values import message, one_line

_MAX_BYTES = 1 << 20  # of a file
_MAX_CHARACTERS = 500  # of what an exception says
_OURS = ("routershift", "services", "shared")  # imported already where the file is loaded


def no_hint(error: BaseException) -> str:
    """Nothing to add to what an exception says."""
    return ""


def read_source(file: Path, expected: str) -> str:
    """The text of a file of up to a MiB.

    Args:
        expected: what it should be, for messages.

    Raises:
        NotFoundError, InvalidInputError: there is no such file, or it is no text, or too long.
    """
    try:
        size = file.stat().st_size
        text = file.read_text(encoding="utf-8-sig") if size <= _MAX_BYTES else ""
    except OSError as error:
        raise NotFoundError(f"file is {file}: {error.strerror}; expected {expected}") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"file is {file}, which is no text in UTF-8: {error}") from None
    if size > _MAX_BYTES:
        raise InvalidInputError(f"file is {file}, of {size} bytes; expected a Python file of at most {_MAX_BYTES}")
    return text


def load_module(name: str, file: Path, source: str, hint: Callable[[BaseException], str] = no_hint) -> ModuleType:
    """Runs the file and gives its module.

    Modules beside the file can be imported, except where the standard library or RouterShift has one of that name.

    Args:
        name: of the module.
        source: what the file holds.
        hint: for the end of what is said of an exception.

    Raises:
        InvalidInputError: it does not run; names file and line.
    """
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # as dataclasses and pickle look it up
    _find_beside(file)
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # the user's own
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}" if error.filename else str(file)
        raise InvalidInputError(f"{where}: {type(error).__name__}: {error.msg}") from None
    except BaseException as error:
        where = place(error, file) or str(file)
        raise InvalidInputError(f"{where}: loading it raises {raised(error, hint)}{_name_taken(error)}") from None
    return module


def raised(error: BaseException, hint: Callable[[BaseException], str] = no_hint) -> str:
    """What an exception says, in a line."""
    said = message(error)
    return one_line(f"{type(error).__name__}{said and f': {said}'}{hint(error)}", _MAX_CHARACTERS)


def place(error: BaseException, file: Path) -> str:
    """The last line of the file that an exception has gone through; "" for none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else ""


def _find_beside(file: Path) -> None:
    """Makes the modules beside the file importable.

    They stand behind the standard library: a file of the user's named random.py would otherwise be what every other
    package gets that imports random.
    """
    library = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    library |= {str(Path(path) / "lib-dynload") for path in library}
    behind = max((n for n, path in enumerate(sys.path) if path in library), default=-1)
    sys.path.insert(behind + 1, str(file.resolve().parent))


def _name_taken(error: BaseException) -> str:
    """The fix where a folder beside the file has the name of a package of ours."""
    top = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    return f"; {top} is a package of RouterShift here: rename the one beside the file" if top in _OURS else ""
