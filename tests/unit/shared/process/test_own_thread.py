"""A thread of one's own."""

import contextvars
import threading

import pytest

from shared.process.own_thread import OwnThread

CONTEXT = contextvars.ContextVar("context", default="")


def seen(number: int, *, add: int) -> tuple[int, str, int]:
    if number < 0:
        raise ValueError(number)
    return threading.get_ident(), CONTEXT.get(), number + add


async def test_calls_have_one_thread_and_the_callers_context() -> None:
    own = OwnThread("own")
    CONTEXT.set("of the caller")
    first, second = await own.run(seen, 1, add=2), await own.run(seen, 2, add=2)
    assert first[0] == second[0] != threading.get_ident()
    assert (first[1:], second[1:]) == (("of the caller", 3), ("of the caller", 4))
    with pytest.raises(ValueError, match="-1"):
        await own.run(seen, -1, add=0)
    own.close()
