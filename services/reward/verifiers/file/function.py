"""A reward function of somebody's own: loaded from its file, looked at, and called."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.reward.limits import memory_hint
from services.reward.verifiers.base import Item, Verdict, VerifierError
from shared.errors import InvalidInputError
from shared.names import nearest
from shared.user_module import load_module, place, raised
from shared.values import number, shown

REFERENCE_KEY = "answer"  # where a reference that is one value stands

_MODULE = "routershift_reward_file"
_ONE, _BATCH = "score", "scores"
_PARAMETERS = ("response", "reference", "prompt", "messages")
_ITEMS = "items"
_EXPECTED = (
    "its parameters are given by name: response, and if wanted reference, prompt and messages; or items alone, for a "
    "list of them"
)
_MAX_CHARACTERS = 500  # of what an exception says


class Function:
    """A function that judges.

    One with the parameters `response`, `reference`, `prompt` and `messages`, or some of them, is called for each item;
    one with the parameter `items` for many, and gives a list. Both may be coroutine functions.
    """

    def __init__(self, file: Path, name: str, call: Callable[..., Any]) -> None:
        """Raises InvalidInputError for parameters that cannot be given."""
        self.name = name
        self._file = file
        self._call = call
        code = getattr(inspect.unwrap(call), "__code__", None)
        self._where = f"{file}:{code.co_firstlineno}" if code else str(file)
        self._names = self._parameters()
        self.takes_items = self._names == (_ITEMS,)
        self.is_async = inspect.iscoroutinefunction(call)
        self._runner = asyncio.Runner()

    @property
    def is_batched(self) -> bool:
        """Whether it is faster with many items at once."""
        return self.takes_items or self.is_async

    def judge(self, items: Sequence[Item], threshold: float) -> list[Verdict | Exception]:
        """A verdict an item, or why there is none.

        Args:
            threshold: reward from which a response is correct, where the function does not say.

        Raises:
            VerifierError: the function has failed for all items together.
        """
        if self.takes_items:
            values = self._called({_ITEMS: [_plain(item) for item in items]}, "")
            if not isinstance(values, list | tuple) or len(values) != len(items):
                what = f"{len(values)} values" if isinstance(values, list | tuple) else shown(values)
                raise VerifierError(f"{self._where}: {self.name} returns {what}; expected a list of {len(items)}")
            return [self._read(value, threshold) for value in values]
        if not self.is_async:
            return [self._judged(item, threshold) for item in items]
        return list(self._runner.run(self._together(items, threshold)))

    def close(self) -> None:
        """Ends the event loop of coroutine functions."""
        self._runner.close()

    def _judged(self, item: Item, threshold: float) -> Verdict | Exception:
        try:
            return self._read(self._called(self._arguments(item), _reference_shown(item)), threshold)
        except (VerifierError, InvalidInputError) as error:
            return error

    async def _together(self, items: Sequence[Item], threshold: float) -> list[Verdict | Exception]:
        async def judged(item: Item) -> Verdict | Exception:
            try:
                return self._read(await self._call(**self._arguments(item)), threshold)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                return self._fault(error, _reference_shown(item))

        return await asyncio.gather(*map(judged, items))

    def _called(self, arguments: Mapping[str, Any], about: str) -> Any:
        async def awaited(value: Awaitable[Any]) -> Any:
            return await value

        try:
            value = self._call(**arguments)
            return self._runner.run(awaited(value)) if inspect.isawaitable(value) else value
        except BaseException as error:
            raise self._fault(error, about) from None

    def _fault(self, error: BaseException, about: str) -> Exception:
        if isinstance(error, InvalidInputError):  # it says that the reference is at fault
            return error
        where = place(error, self._file) or self._where
        return VerifierError(f"{where}: {self.name} raises {raised(error, memory_hint)}{about}")

    def _arguments(self, item: Item) -> dict[str, Any]:
        plain = _plain(item)
        return {name: plain[name] for name in self._names}

    def _read(self, value: Any, threshold: float) -> Verdict | Exception:
        values = value if isinstance(value, Mapping) else {"reward": value}
        if "reward" not in values:
            return self._unusable(shown(dict(values)), '; expected "reward" among its keys')
        read = {name: number(part) for name, part in values.items()}
        for name, part in read.items():
            if part is None or not isinstance(name, str):
                where = shown(value) if values is not value else f"{name} = {shown(values[name])}"
                return self._unusable(where, '; expected a finite number, or a dict of them with the key "reward"')
        parts = {name: part for name, part in read.items() if part is not None and name != "reward"}
        reward = read["reward"] or 0.0
        return Verdict(reward, {"correct": float(reward >= threshold), **parts})

    def _unusable(self, what: str, expected: str) -> Exception:
        return VerifierError(f"{self._where}: {self.name} returns {what}{expected}")

    def _parameters(self) -> tuple[str, ...]:
        """The names of those that are given."""
        try:
            parameters = inspect.signature(self._call).parameters.values()
        except (TypeError, ValueError):
            raise InvalidInputError(f"{self._where}: the parameters of {self.name} are unknown; {_EXPECTED}") from None
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        single = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        named = {p.name for p in single if p.kind is not p.POSITIONAL_ONLY}
        needed = {p.name for p in single if p.default is p.empty}
        if _ITEMS in named and "response" not in named:
            names: tuple[str, ...] = (_ITEMS,)
        else:
            names = tuple(name for name in _PARAMETERS if name in named or takes_any)
        if extra := sorted(needed - (named & set(names))):
            raise InvalidInputError(f"{self._where}: {self.name} needs a parameter {extra[0]!r}; {_EXPECTED}")
        if not {_ITEMS, "response"} & set(names):
            raise InvalidInputError(f"{self._where}: {self.name} has no parameter 'response'; {_EXPECTED}")
        return names


def load(file: Path, source: str, name: str | None) -> Function:
    """Runs the file and gives its function.

    Modules beside the file can be imported, except where the standard library or RouterShift has one of that name.

    Args:
        source: what the file holds.
        name: of the function; None: score, or else scores.

    Raises:
        InvalidInputError: it does not run, or has no such function; names file, line and fix.
    """
    module = load_module(_MODULE, file, source, memory_hint)
    own = [
        key for key, value in vars(module).items()
        if inspect.isroutine(value) and getattr(value, "__module__", None) == _MODULE and not key.startswith("_")
    ]  # fmt: skip
    wanted = name or next((known for known in (_ONE, _BATCH) if hasattr(module, known)), _ONE)
    call = getattr(module, wanted, None)
    if call is None:
        fix = (
            f"did you mean function = {nearest(wanted, own)!r}?"
            if own
            else "define it, as def score(response, reference)"
        )
        has = f"it has {', '.join(own)}; " if own else ""
        raise InvalidInputError(f"{file} has no function {wanted!r}; {has}{fix}")
    if not callable(call):
        raise InvalidInputError(f"{file}: {wanted} is {shown(call)}; expected a function")
    return Function(file, wanted, call)


def _plain(item: Item) -> dict[str, Any]:
    """As the lines of a file for `routershift score`. A reference that is one value is that value, and {} is None."""
    reference: Any = dict(item.reference) or None
    if item.reference.keys() == {REFERENCE_KEY}:
        reference = item.reference[REFERENCE_KEY]
    messages = item.conversation()
    return {"prompt": item.prompt, "response": item.response, "reference": reference, "messages": messages}


def _reference_shown(item: Item) -> str:
    return f" (reference: {shown(_plain(item)['reference'])})"
