"""The Lua scripts beside this module: every state change of the data path is one of them."""

from importlib import resources


def source(name: str) -> str:
    return resources.files("shared.streams").joinpath("lua", name).read_text(encoding="utf-8")
