"""The program's end of a run of tests: its module, and what it holds, on request.

This process runs the program's own code, so that nothing it says is trusted. It is asked:
    ["names", [name, ...]]             what the module has under these names; null: under all that are public
    ["call", object, args, kwargs]     answered with the result, and with the arguments as they are then
    ["do", operation, object, args]    attributes, items and operators of what it returned
Each is answered by ["value", value, args] or ["error", [class names], text]; before that, it may ask back
["callback", function, args, kwargs], and reads ["value", value] or ["error", ...].
"""

import operator
import socket
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from shared.sandbox.inside import frames, values

MODULE = "solution"

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr, "setattr": setattr, "getitem": operator.getitem, "setitem": operator.setitem,
    "delitem": operator.delitem, "len": len, "iter": iter, "next": next, "bool": bool, "str": str, "repr": repr,
    "enter": lambda x: x.__enter__(), "exit": lambda x, *_: x.__exit__(None, None, None),
    "eq": operator.eq, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "neg": operator.neg, "and": operator.and_, "or": operator.or_, "hash": hash, "contains": operator.contains,
}  # fmt: skip


def serve(link: socket.socket, folder: str) -> None:
    """Imports the module from `folder` and answers until the other end closes."""
    sys.path.insert(0, folder)
    solution = _Solution(link)
    path = str(_path(folder))
    module = sys.modules[MODULE] = ModuleType(MODULE)
    vars(module).update(__file__=path)
    try:
        SourceFileLoader(MODULE, path).exec_module(module)
    except BaseException as error:
        frames.send(link, _error(error))
        return
    frames.send(link, ["value", None, []])
    solution.answer(vars(module))


def write(folder: str, source: str) -> None:
    _path(folder).write_text(source, encoding="utf-8", errors="replace")


def _path(folder: str) -> Path:
    return Path(folder, f"{MODULE}.py")


class _Callback:
    """A function of the tests that was passed to the program."""

    def __init__(self, solution: "_Solution", number: int) -> None:
        self._solution = solution
        self._number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._solution.call_back(self._number, args, kwargs)


class _Solution:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def answer(self, names: dict[str, Any]) -> None:
        while True:
            try:
                request, _ = frames.receive(self._link)
            except frames.BrokenLinkError:
                return
            frames.send(self._link, self._answer(request, names))

    def _answer(self, request: Any, names: dict[str, Any]) -> Any:
        try:
            kind, *rest = request
            if kind == "names":
                asked = names.get("__all__", [n for n in names if n[0] != "_"]) if rest[0] is None else rest[0]
                found = {name: names[name] for name in asked if name in names}
                return ["value", self._encode(found), []]
            if kind == "call":
                target, args, kwargs = rest
                positional, named = self._decode(args), self._decode(kwargs)
                result = self._objects[target](*positional, **named)
                return ["value", self._encode(result), self._encode(positional)]
            operation, target, args = rest
            result = _OPERATIONS[operation](self._objects[target], *self._decode(args))
            return ["value", self._encode(result), []]
        except BaseException as error:
            return _error(error)

    def call_back(self, number: int, args: Any, kwargs: Any) -> Any:
        frames.send(self._link, ["callback", number, self._encode(args), self._encode(kwargs)])
        answer, _ = frames.receive(self._link)
        if answer[0] == "error":
            raise RuntimeError(answer[2])
        return self._decode(answer[1])

    def _encode(self, value: Any) -> Any:
        return values.encode(value, self._refer)

    def _refer(self, value: Any) -> Any:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return {"object": number}

    def _decode(self, value: Any) -> Any:
        return values.decode(value, lambda tag, n: self._objects[n] if tag == "object" else _Callback(self, n))


def _error(error: BaseException) -> Any:
    return ["error", [kind.__name__ for kind in type(error).__mro__], str(error)[:500]]
