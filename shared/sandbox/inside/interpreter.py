"""Runs a Python program in a process that was forked from an interpreter, so that it notices nothing of that."""

import atexit
import builtins
import contextlib
import gc
import importlib
import os
import site
import sys
import threading
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

# What LeetCode and LiveCodeBench import before a program: everything of these modules, and the modules themselves.
# Loaded before the program comes, they also cost it nothing.
_PRELUDE = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing",
)  # fmt: skip
_PRELOADED = ("decimal", "fractions", "queue", "time")
_RECURSION_LIMIT = 50_000  # as LiveCodeBench has it

_prelude: dict[str, Any] = {}


def warm() -> None:
    """Makes an interpreter that was started without `site` like any other, and loads what programs need."""
    site.setquit()
    sys.dont_write_bytecode = True
    modules = {name: importlib.import_module(name) for name in (*_PRELUDE, *_PRELOADED)}
    for name in _PRELUDE:
        module = modules[name]
        public = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        _prelude.update({n: getattr(module, n) for n in public})
    _prelude.update({name: modules[name] for name in _PRELUDE})


def add_prelude() -> None:
    """Names of the prelude that a program neither defines nor imports are found beside the built-in ones."""
    known = vars(builtins)
    for name, value in _prelude.items():
        known.setdefault(name, value)
    sys.setrecursionlimit(_RECURSION_LIMIT)


def python(path: str) -> Callable[[], None]:
    """A program for `Runner.run`: this interpreter, as `python path`."""

    def start() -> None:
        sys.argv = [path]
        sys.path.insert(0, str(Path(path).parent))
        main = sys.modules["__main__"] = ModuleType("__main__")
        vars(main).update(__file__=path, __builtins__=builtins)
        SourceFileLoader("__main__", path).exec_module(main)

    return start


def leave(start: Callable[[], None]) -> NoReturn:
    """Runs `start` and ends this process as the interpreter would, files flushed and objects of the program finalized.

    The modules of the library are not taken down: that takes longer than most programs.
    """
    code = 1
    try:
        code = _status(start)
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads, as multiprocessing does
            atexit._run_exitfuncs()
        flushed = _flush(sys.stdout)
        _take_down(sys.modules["__main__"])
        if not (_flush(sys.__stdout__) and flushed):
            code = 120  # as Py_RunMain does
    finally:
        os._exit(code & 0xFF)


def _status(start: Callable[[], None]) -> int:
    try:
        start()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        return 1
    return 0


def _flush(file: Any) -> bool:
    """Whether nothing is left to write. Raises nothing, whatever the program put in its place."""
    try:
        if file is not None and not getattr(file, "closed", False):
            file.flush()
    except BaseException:
        return False
    return True


def _take_down(main: ModuleType) -> None:
    """Drops what the program's names hold, private ones first: its files are written, and `__del__` is called."""
    with contextlib.suppress(BaseException):
        gc.collect()  # twice, as Py_FinalizeEx: this one puts what is reachable in order, files before their buffers
        names = vars(main)
        for private in (True, False):
            for name in [n for n in names if n.startswith("_") == private and n != "__builtins__"]:
                names[name] = None
        gc.collect()
