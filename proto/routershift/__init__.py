"""Router-aware reinforcement learning for Mixture-of-Experts models (RSPO, arXiv 2510.23027), as a library.

    from routershift import RouterTap, router_shift, rspo_loss

`RouterTap` records what a model's routers chose and how they scored it, `router_shift` makes of two such records the
factor gamma of each token, and `rspo_loss` weighs the tokens by it. They need torch and nothing else of what
RouterShift installs, and are made of what its learner computes with. docs/how-to/use-as-a-library.md has them in a
plain loop and in TRL.

`routershift.algorithms` and `routershift.routing` hold the parts, `routershift.v1` the messages of the services.
This package imports neither `services` nor `shared`, since a user's own project may have folders of these names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from routershift.errors import MissingDependencyError

if TYPE_CHECKING:
    from routershift.algorithms.rspo import rspo_loss
    from routershift.routing.shift import router_shift
    from routershift.routing.tap import RouterTap

__all__ = ["RouterTap", "router_shift", "rspo_loss"]

# Imported when first asked for: `routershift.v1` and the errors are read where no torch is installed.
_HOMES = {
    "RouterTap": "routershift.routing.tap",
    "router_shift": "routershift.routing.shift",
    "rspo_loss": "routershift.algorithms.rspo",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'routershift' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(
            f"routershift.{name} needs the package torch: pip install 'routershift[learner]'"
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
