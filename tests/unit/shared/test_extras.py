"""The extras: each package of one is declared, and what is missing is named with its extra."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from shared import extras
from tests.support.pages import all_pages

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {  # where the name that is imported is another
    "antlr4": "antlr4-python3-runtime",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "opentelemetry": "opentelemetry-sdk",
}
BROUGHT = {"latex2sympy2_extended": "math_verify"}  # by another package


def test_each_package_is_in_the_extra_that_is_named() -> None:
    for module, extra in extras._EXTRAS.items():
        distribution = DISTRIBUTIONS.get(module, BROUGHT.get(module, module)).replace("_", "-")
        assert distribution in [Requirement(line).name for line in EXTRAS[extra]], f"{module}: {extra}"


def test_what_every_installation_has_is_small() -> None:
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["grpcio", "protobuf", "pydantic", "numpy"]


def test_extras_that_messages_and_pages_name_exist() -> None:
    sources = [file for folder in ("services", "shared", "proto") for file in (ROOT / folder).rglob("*.py")]
    named = {
        (file, extra)
        for file in [*sources, *all_pages(), ROOT / "pyproject.toml"]
        for listed in re.findall(r"routershift\[([a-z,-]+)\]", file.read_text())
        for extra in listed.split(",")
    }
    assert named
    assert {(file, extra) for file, extra in named if extra not in EXTRAS} == set()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("", name="redis.asyncio"),
            "x needs the package redis: pip install 'routershift[services]'",
        ),
        (ModuleNotFoundError("", name="torch"), "x needs the package torch: pip install 'routershift[learner]'"),
        (ModuleNotFoundError("", name="somebodys_own"), None),
        (ModuleNotFoundError(""), None),
        (ImportError("cannot import name", name="redis"), None),  # it is there, and broken
    ],
)
def test_the_error_names_the_extra(error: ImportError, said: str | None) -> None:
    found = extras.missing("x", error)
    assert (None if found is None else str(found)) == said
