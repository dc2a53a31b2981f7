"""The trackers by name: those built in, and those of packages, by entry points."""

from collections.abc import Iterable
from typing import TypeGuard

from routershift.plugins import with_plugins
from shared.errors import NotFoundError
from shared.settings import BaseSettings
from shared.tracking.base import Tracker
from shared.tracking.trackers.mlflow import MlflowTracker
from shared.tracking.trackers.tensorboard import TensorBoardTracker
from shared.tracking.trackers.trackio import TrackioTracker
from shared.tracking.trackers.wandb import WandbTracker

GROUP = "routershift.trackers"  # entry points of other packages: name = "module:class"

_BUILT_IN: tuple[type[Tracker], ...] = (TensorBoardTracker, WandbTracker, MlflowTracker, TrackioTracker)


def trackers() -> dict[str, type[Tracker]]:
    """Every tracker by name.

    Raises:
        PreconditionError: an entry point that does not load, is no tracker, or has a name that is taken.
    """
    return with_plugins(GROUP, {tracker.name: tracker for tracker in _BUILT_IN}, _is_tracker, "subclass of Tracker")


def make_trackers(names: Iterable[str], settings: BaseSettings, service: str) -> list[Tracker]:
    """The trackers that `run.trackers` names, each once; nothing is opened yet.

    Raises:
        NotFoundError: an unknown name.
        RouterShiftError: a tracker that cannot be used.
    """
    chosen = list(dict.fromkeys(names))
    known = trackers() if chosen else {}
    for name in chosen:
        if name not in known:
            raise NotFoundError(
                f"run.trackers has {name!r}; known: {', '.join(known)}. A package adds one by the entry point {GROUP}"
            )
    return [known[name](settings, service) for name in chosen]


def _is_tracker(loaded: object) -> TypeGuard[type[Tracker]]:
    return isinstance(loaded, type) and issubclass(loaded, Tracker)
