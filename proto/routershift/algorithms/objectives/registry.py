"""The objectives by name: those built in, and those that installed packages add."""

from typing import TypeGuard

from routershift.algorithms.objectives.base import Objective
from routershift.algorithms.objectives.cispo import Cispo
from routershift.algorithms.objectives.dppo import DppoKl, DppoTv
from routershift.algorithms.objectives.gmpo import Gmpo
from routershift.algorithms.objectives.grpo import Grpo
from routershift.algorithms.objectives.gspo import Gspo
from routershift.algorithms.objectives.reinforce import Reinforce
from routershift.plugins import with_plugins

GROUP = "routershift.objectives"  # entry points of other packages: name = "module:class"

_BUILT_IN: tuple[type[Objective], ...] = (Grpo, Gspo, Gmpo, Cispo, DppoTv, DppoKl, Reinforce)


def objectives() -> dict[str, type[Objective]]:
    """Every objective by name.

    Raises:
        PreconditionError: an entry point that does not load, is no objective, or has a name that is taken.
    """
    known = {objective.name: objective for objective in _BUILT_IN}
    return with_plugins(GROUP, known, _is_objective, "subclass of Objective")


def _is_objective(loaded: object) -> TypeGuard[type[Objective]]:
    return isinstance(loaded, type) and issubclass(loaded, Objective)
