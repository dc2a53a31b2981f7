"""From figures to a page: one file of HTML that loads nothing and runs nothing but its own script.

Texts of a run, such as what a model wrote, are untrusted: templates escape them, data is JSON in which no tag can end,
and the Content-Security-Policy allows this script and this style by their hashes and nothing else.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from shared.tracking import records

_PACKAGE = "services.cli.pages"
# Files of assets/, in the order in which they need each other.
FIGURES = ("theme.js", "drawing.js", "chart.js", "line_plot.js", "heat_map.js", "figures.js")
SAMPLES = ("tokens.js", "samples.js")


def page(
    template: str, scripts: Sequence[str], connects: bool = False, folder: Path | None = None, **values: Any
) -> str:
    """The page of a template.

    Args:
        scripts: files of assets/, in their order.
        connects: whether the page may ask the server that it came from.
        folder: of a template that is not in this package; those that it extends and includes are.
    """
    script, style = "\n".join(map(_asset, scripts)), _asset("page.css")
    allowed = {
        "default-src": "'none'",
        "script-src": f"'{_hash(script)}'",
        "style-src": f"'{_hash(style)}'",
        "connect-src": "'self'" if connects else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    policy = "; ".join(f"{kind} {sources}" for kind, sources in allowed.items())
    found = _environment(folder).get_template(template)
    return found.render(policy=policy, script=script, style=style, live=connects, **values)


@cache
def _environment(folder: Path | None) -> Environment:
    loaders: list[BaseLoader] = [PackageLoader(_PACKAGE), *([FileSystemLoader(folder)] if folder else [])]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.policies["json.dumps_function"] = _dumps
    environment.policies["json.dumps_kwargs"] = {}
    return environment


def _dumps(value: Any) -> str:
    """Strict JSON; jinja2's `tojson` escapes what could end the tag around it."""
    return records.dumps(value)


@cache
def _asset(name: str) -> str:
    return (resources.files(_PACKAGE) / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def in_words(value: Any) -> str:
    """A setting's value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | Sequence | bool):
        return records.dumps(value)
    return str(value)
