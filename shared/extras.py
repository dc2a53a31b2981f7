"""The extras of RouterShift: which of them has an optional package, so that an error can name it.

`pip install routershift` brings what the clients and the library need; pyproject.toml says what each extra is for.
Modules whose import alone needs an optional package leave the error to the command line, which asks here.
"""

from shared.errors import MissingDependencyError

# By the name that is imported.
_EXTRAS = {
    "grpc_health": "services",
    "grpc_reflection": "services",
    "prometheus_client": "services",
    "redis": "services",
    "setproctitle": "services",
    "peft": "learner",
    "safetensors": "learner",
    "torch": "learner",
    "transformers": "learner",
    "torchao": "torchao",
    "datasets": "data",
    "pyarrow": "data",
    "antlr4": "reward",
    "jsonschema": "reward",
    "latex2sympy2_extended": "reward",
    "math_verify": "reward",
    "obstore": "object-store",
    "opentelemetry": "traces",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "jinja2": "local",
    "psutil": "local",
    "rich": "local",
    "simpy": "planner",
}


def missing(what: str, error: ImportError) -> MissingDependencyError | None:
    """The error for the user where `what` needs a package of an extra; None for an import that failed otherwise."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in _EXTRAS:
        return None
    return MissingDependencyError(
        f"{what} needs the package {package}: pip install 'routershift[{_EXTRAS[package]}]'", name=package
    )
