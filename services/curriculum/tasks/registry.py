"""The tasks by name: those built in, and those that installed packages add."""

from typing import TypeGuard

from routershift.plugins import with_plugins
from services.curriculum.tasks.base import Task
from services.curriculum.tasks.calculator import Calculator
from services.curriculum.tasks.countdown import Countdown
from shared.errors import NotFoundError

GROUP = "routershift.tasks"  # entry points of other packages: name = "module:class"

_BUILT_IN: tuple[type[Task], ...] = (Countdown, Calculator)


def tasks() -> dict[str, type[Task]]:
    """Every task by name.

    Raises:
        PreconditionError: an entry point that does not load, is no task, or has a name that is taken.
    """
    return with_plugins(GROUP, {task.name: task for task in _BUILT_IN}, _is_task, "subclass of Task")


def make_task(name: str, seed: int) -> Task:
    """Raises NotFoundError for an unknown name, PreconditionError for an entry point that does not load."""
    known = tasks()
    if name not in known:
        raise NotFoundError(
            f"run.task is {name!r}; known: {', '.join(known)}. Another package adds a task by the entry point {GROUP}"
        )
    return known[name](seed)


def _is_task(loaded: object) -> TypeGuard[type[Task]]:
    return isinstance(loaded, type) and issubclass(loaded, Task)
