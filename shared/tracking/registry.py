"""The trackers by name. None is built in: they come from packages, by entry points."""

from collections.abc import Iterable
from typing import TypeGuard

from routershift.plugins import with_plugins
from shared.errors import NotFoundError
from shared.settings import RunSettings
from shared.tracking.base import Tracker

GROUP = "routershift.trackers"  # entry points of other packages: name = "module:class"

_BUILT_IN: tuple[type[Tracker], ...] = ()


def trackers() -> dict[str, type[Tracker]]:
    """Every tracker by name.

    Raises:
        PreconditionError: an entry point that does not load, is no tracker, or has a name that is taken.
    """
    return with_plugins(GROUP, {tracker.name: tracker for tracker in _BUILT_IN}, _is_tracker, "subclass of Tracker")


def make_trackers(names: Iterable[str], run: RunSettings) -> list[Tracker]:
    """Opens the trackers that `run.trackers` names.

    Raises:
        NotFoundError: an unknown name.
        RouterShiftError: a tracker that cannot be used.
    """
    chosen = list(names)
    known = trackers() if chosen else {}
    for name in chosen:
        if name not in known:
            raise NotFoundError(
                f"run.trackers has {name!r}; known: {', '.join(known) or 'none'}. A package adds one by the entry "
                f"point {GROUP}"
            )
    return [known[name](run) for name in chosen]


def _is_tracker(loaded: object) -> TypeGuard[type[Tracker]]:
    return isinstance(loaded, type) and issubclass(loaded, Tracker)
