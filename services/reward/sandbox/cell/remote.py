"""The program as its tests see it: functions, classes and objects that live in another process.

What the docstring of `tests` promises is kept here.
"""

import builtins
import socket
from types import FunctionType, MethodType
from typing import Any, cast

from services.reward.sandbox.cell import frames, values

_QUESTIONS = {"startswith", "endswith", "count", "index", "find"} | {
    name for kind in (str, bytes, int, float, set) for name in dir(kind) if name.startswith("is")
}


class ProgramEndedError(BaseException):
    """The program's process is gone or talks nonsense. Not an Exception: no test may take it for one it expects."""


class UnfitTestError(BaseException):
    """The test does what cannot be done across processes, which is no fault of the program."""


class Program:
    """The other end."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._remotes: dict[int, Remote] = {}
        self._callbacks: list[Any] = []
        self.alive = True

    def start(self, names: list[str]) -> dict[str, Any]:
        """Waits until the program is imported; gives what it has under these names."""
        self._answer()
        found = self._ask(["names", names])[0]
        if not isinstance(found, dict):
            raise self._gone("names")
        return {name: value for name, value in found.items() if name in names}

    def call(self, target: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result, after = self._ask(["call", target, self._encode(args), self._encode(kwargs)])
        if isinstance(after, tuple) and len(after) == len(args):
            for argument, changed in zip(args, after, strict=True):
                _write_back(argument, changed)
        return result

    def do(self, operation: str, target: int, *args: Any) -> Any:
        return self._ask(["do", operation, target, self._encode(args)])[0]

    def _ask(self, request: Any) -> tuple[Any, Any]:
        if not self.alive:
            raise self._gone("asked again")
        try:
            frames.send(self._link, request)
        except frames.BrokenLinkError:
            raise self._gone("no listener") from None
        return self._answer()

    def _answer(self) -> tuple[Any, Any]:
        while True:
            try:
                answer, _ = frames.receive(self._link)
                kind, *rest = answer
                if kind == "callback":
                    number, args, kwargs = rest
                    reply = self._call_back(self._callbacks[number], self._decode(args), self._decode(kwargs))
                    frames.send(self._link, reply)
                    continue
                if kind == "value":
                    value, after = rest
                    return self._decode(value), self._decode(after) if after else None
                classes, text = rest
                failure = _exception(classes, text)
            except Exception as error:  # what it sent can break anything here
                raise self._gone(str(error)) from None
            raise failure

    def _call_back(self, function: Any, args: Any, kwargs: Any) -> Any:
        try:
            return ["value", self._encode(function(*args, **kwargs))]
        except Exception as error:
            return ["error", [], str(error)]

    def _gone(self, why: str) -> ProgramEndedError:
        self.alive = False
        return ProgramEndedError(why)

    def _encode(self, value: Any) -> Any:
        return values.encode(value, self._refer)

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"object": object.__getattribute__(value, "_number")}
        if isinstance(value, FunctionType | MethodType | type(len)):
            self._callbacks.append(value)
            return {"callback": len(self._callbacks) - 1}
        raise UnfitTestError(f"it passes a {type(value).__name__} to the program; data and functions can be passed")

    def _decode(self, value: Any) -> Any:
        return values.decode(value, self._resolve)

    def _resolve(self, tag: str, number: Any) -> "Remote":
        if tag != "object" or not isinstance(number, int):
            raise ValueError(tag)
        if number not in self._remotes:
            self._remotes[number] = Remote(self, number)
        return self._remotes[number]


def _write_back(argument: Any, changed: Any) -> None:
    if type(argument) is not type(changed) or argument == changed:
        return
    if isinstance(argument, list | bytearray):
        argument[:] = changed
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(changed)


def _exception(classes: Any, text: Any) -> BaseException:
    """The nearest built-in class of what the program raised."""
    for name in classes:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(str(text))
            except TypeError:  # UnicodeDecodeError and its like want more arguments
                continue
    return ProgramEndedError(str(text))


class Remote:
    """What the program holds. It has no operator that would show the program what it is compared with."""

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _program(self).call(_number(self), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _QUESTIONS:
            raise AttributeError(name)
        return _do(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _do(self, "setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return _do(self, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _do(self, "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        _do(self, "delitem", key)

    def __len__(self) -> int:
        return int(_do(self, "len"))

    def __bool__(self) -> bool:
        return bool(_do(self, "bool"))

    def __str__(self) -> str:
        return str(_do(self, "str"))

    def __repr__(self) -> str:
        return str(_do(self, "repr"))

    def __iter__(self) -> Any:
        return _do(self, "iter")

    def __next__(self) -> Any:
        return _do(self, "next")

    def __enter__(self) -> Any:
        return _do(self, "enter")

    def __exit__(self, *_: object) -> None:
        _do(self, "exit")

    def __neg__(self) -> Any:
        return _do(self, "neg")

    def __hash__(self) -> int:
        return int(_do(self, "hash"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return NotImplemented
        return self is other or bool(_do(self, "eq", other))

    def __lt__(self, other: Any) -> Any:
        return _between(self, "lt", other)

    def __le__(self, other: Any) -> Any:
        return _between(self, "le", other)

    def __gt__(self, other: Any) -> Any:
        return _between(self, "gt", other)

    def __ge__(self, other: Any) -> Any:
        return _between(self, "ge", other)

    def __add__(self, other: Any) -> Any:
        return _between(self, "add", other)

    def __sub__(self, other: Any) -> Any:
        return _between(self, "sub", other)

    def __mul__(self, other: Any) -> Any:
        return _between(self, "mul", other)

    def __truediv__(self, other: Any) -> Any:
        return _between(self, "truediv", other)

    def __and__(self, other: Any) -> Any:
        return _between(self, "and", other)

    def __or__(self, other: Any) -> Any:
        return _between(self, "or", other)


def _program(remote: Remote) -> Program:
    return cast(Program, object.__getattribute__(remote, "_program"))


def _number(remote: Remote) -> int:
    return cast(int, object.__getattribute__(remote, "_number"))


def _do(remote: Remote, operation: str, *args: Any) -> Any:
    return _program(remote).do(operation, _number(remote), *args)


def _between(remote: Remote, operation: str, other: Any) -> Any:
    """An operator of two things of the program; with data, Python says that there is none."""
    return _do(remote, operation, other) if isinstance(other, Remote) else NotImplemented
