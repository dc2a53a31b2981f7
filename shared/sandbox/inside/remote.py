"""The program as its tests see it: functions, classes and objects that live in another process.

What the docstring of `tests` promises is kept here.
"""

import builtins
import socket
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from types import FunctionType, MethodType
from typing import Any, cast

from shared.sandbox.inside import frames, values

_PLAIN = (
    str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, range, Decimal, Fraction
)  # fmt: skip
_PLAIN_METHODS = {name for kind in _PLAIN for name in dir(kind) if callable(getattr(kind, name))}
_QUESTIONS = {name for name in _PLAIN_METHODS if name.startswith("is")}


class ProgramEndedError(BaseException):
    """The program's process is gone or talks nonsense. Not an Exception: no test may take it for one it expects."""


class UnfitTestError(BaseException):
    """The test does what cannot be done across processes, which is no fault of the program."""


class Program:
    """The other end. `uses` counts what tests had it do; `unfit` says what a test did that cannot be judged."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._remotes: dict[int, Remote] = {}
        self._callbacks: list[Any] = []
        self.alive = True
        self.uses = 0
        self.unfit = ""

    def start(self) -> None:
        """Waits until the program is imported. Raises what it raised."""
        self._answer()

    def names(self, names: Sequence[str] | None) -> dict[str, Any]:
        """What the program has under these names; None: under all that are public."""
        found = self._ask(["names", names])[0]
        if not (isinstance(found, dict) and all(isinstance(name, str) for name in found)):
            raise self._gone("names")
        found = {name: value for name, value in found.items() if names is None or name in names}
        for name, value in found.items():
            self.uses += not isinstance(value, Remote)
            if isinstance(value, Remote) and name.lstrip("_")[:1].isupper():
                object.__setattr__(value, "_role", _CLASS)
        return found

    def call(self, target: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.uses += 1
        result, after = self._ask(["call", target, self._encode(args), self._encode(kwargs)])
        if isinstance(after, tuple) and len(after) == len(args):
            for argument, changed in zip(args, after, strict=True):
                _write_back(argument, changed)
        return result

    def do(self, operation: str, target: int, *args: Any) -> Any:
        self.uses += 1
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
        self.unfit = f"it passes a {type(value).__name__} to the program; data and functions can be passed"
        raise UnfitTestError(self.unfit)

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


_CLASS, _INSTANCE, _METHOD = "class", "instance", "method"


class Remote:
    """What the program holds. It has no operator that would show the program what it is compared with.

    A test that makes an object of a class of the program's, by a name with a capital, asks that object as it likes.
    What else the program returns where a test may expect plain data is no string and no set: it has the methods of
    plain types only where they are called without arguments, and none that ask yes or no.
    """

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_role", "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        role = object.__getattribute__(self, "_role")
        if role == _METHOD and (args or kwargs):
            raise TypeError("it is no plain data, and is not told what to agree with")
        made = _program(self).call(_number(self), args, kwargs)
        if role == _CLASS and isinstance(made, Remote) and not object.__getattribute__(made, "_role"):
            object.__setattr__(made, "_role", _INSTANCE)
        return made

    def __getattr__(self, name: str) -> Any:
        known = object.__getattribute__(self, "_role") in (_CLASS, _INSTANCE)
        if not known and name in _QUESTIONS:
            raise AttributeError(name)
        value = _do(self, "getattr", name)
        if not known and name in _PLAIN_METHODS and isinstance(value, Remote):
            method = Remote(_program(self), _number(value))
            object.__setattr__(method, "_role", _METHOD)
            return method
        return value

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

    def __contains__(self, item: Any) -> bool:
        if isinstance(item, Remote) or object.__getattribute__(self, "_role") == _INSTANCE:
            return bool(_do(self, "contains", item))
        return any(item is each or item == each for each in self)

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
        # False and not NotImplemented, which is true where a test asks for __eq__ by name
        return isinstance(other, Remote) and (self is other or bool(_do(self, "eq", other)))

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
    """An operator of two things of the program; with data, there is none."""
    if not isinstance(other, Remote):
        raise TypeError(f"unsupported operand for {operation}: {type(other).__name__} and an object of the program's")
    return _do(remote, operation, other)
