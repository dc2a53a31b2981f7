"""Jinja over the columns of a row: templates that give text, and expressions that give any value.

Jinja runs sandboxed. Beside its own filters there are `after`, `boxed`, `from_json` and `letter`.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from services.curriculum.data.rows import RowError, look_up
from shared.errors import InvalidInputError, MissingDependencyError
from shared.names import did_you_mean

_EXPRESSION = re.compile(r"\s*\{\{(.*)\}\}\s*", re.DOTALL)
_MISSING = re.compile(r"'(\w+)' is undefined")
_LONGEST_REASON = 200
_TYPE = re.compile(r"'(\w+)'")  # as Python's messages name one
_KINDS = {"str": "text", "int": "a number", "float": "a number", "bool": "true or false", "NoneType": "nothing",
          "list": "a list", "dict": "a table"}  # fmt: skip
# By what a column holds that an expression cannot compute with: what to do, in the order of what is likely at fault.
_FIXES = {
    "NoneType": "fill it, or ask first: {name} is not none and ...",
    "str": "make it a number, as by {name} | float, or put the other side in quotes",
    "list": "take what is compared out of it, as by {name} | length",
    "dict": "take what is compared out of it, as by {name}.KEY",
    "int": "make it text, as by {name} | string, or take the quotes of the other side away",
    "float": "make it text, as by {name} | string, or take the quotes of the other side away",
}

# Gives a value of a row; raises RowError.
Reader = Callable[[Mapping[str, Any]], Any]


class Templates:
    """Makes readers of rows out of what a recipe says. One environment for all of them."""

    def __init__(self) -> None:
        """Raises MissingDependencyError where jinja2 is not installed."""
        try:
            import jinja2
            import jinja2.meta
            import jinja2.nodes
            import jinja2.sandbox
        except ModuleNotFoundError:
            raise MissingDependencyError("[[data.train]] needs jinja2: pip install 'routershift[data]'") from None
        self._errors, self._undefined = jinja2.TemplateError, jinja2.Undefined
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        environment.filters |= {"after": _after, "boxed": _boxed, "from_json": _from_json, "letter": _letter}
        self._environment = environment
        self._undeclared = jinja2.meta.find_undeclared_variables
        self._nodes = jinja2.nodes

    def column(self, where: str, text: str) -> Reader:
        """What `columns` says of one field: a path, or where it is {{ ... }} an expression, or text with some in it.

        Args:
            where: the setting, for messages.
            text: its value.

        Raises:
            InvalidInputError: an expression that is none.
        """
        if "{{" not in text and "{%" not in text:
            return lambda columns: look_up(columns, text, where)
        if match := _EXPRESSION.fullmatch(text):
            try:
                return self.expression(where, match[1])
            except InvalidInputError:
                pass  # as "{{ a }} and {{ b }}": a template that begins and ends with an expression
        return self.template(where, text)

    def names(self, text: str) -> set[str]:
        """The columns that a column or a template reads, and `row` where it may read any.

        A column with dots is its whole name and its first part: only a row tells which it is.
        """
        if "{{" not in text and "{%" not in text:
            return {text, text.partition(".")[0]}
        return self._undeclared(self._environment.parse(text))

    def template(self, where: str, text: str) -> Reader:
        """A text with Jinja in it. Raises InvalidInputError where it is no template."""
        try:
            render = self._environment.from_string(text).render
        except self._errors as error:
            raise InvalidInputError(f"{where} is {text[:80]!r}, which is no Jinja template: {error}") from None
        paths = self._paths(text)
        return lambda columns: self._run(where, paths, columns, lambda: render(_variables(columns)))

    def expression(self, where: str, text: str) -> Reader:
        """One Jinja expression, whose value keeps its type. Raises InvalidInputError where it is none."""
        try:
            compiled = self._environment.compile_expression(text, undefined_to_none=False)
        except self._errors as error:
            raise InvalidInputError(f"{where} is {text[:80]!r}, which is no Jinja expression: {error}") from None

        paths = self._paths(f"{{{{ {text} }}}}")

        def evaluate(columns: Mapping[str, Any]) -> Any:
            value = self._run(where, paths, columns, lambda: compiled(_variables(columns)))
            if isinstance(value, self._undefined):
                raise _no_such_column(where, str(value._undefined_name), columns)
            return value

        return evaluate

    def _paths(self, text: str) -> set[str]:
        """What a template reads, as `look_up` finds it: columns, and what stands in those that are tables or lists."""
        tree = self._environment.parse(text)
        found = {self._path(node) for node in tree.find_all((self._nodes.Getattr, self._nodes.Getitem))}
        return self._undeclared(tree) | {path for path in found if path is not None}

    def _path(self, node: Any) -> str | None:
        if isinstance(node, self._nodes.Name):
            return str(node.name)
        if isinstance(node, self._nodes.Getattr):
            key = node.attr
        elif isinstance(node, self._nodes.Getitem) and isinstance(node.arg, self._nodes.Const):
            key = node.arg.value
        else:
            return None
        above = self._path(node.node)
        return above and f"{above}.{key}"

    def _run(self, where: str, paths: set[str], columns: Mapping[str, Any], call: Callable[[], Any]) -> Any:
        """Args: paths: what it reads."""
        try:
            return call()
        except RowError:
            raise
        except Exception as error:  # an expression may fail in any way
            reason = " ".join(str(error).split())[:_LONGEST_REASON]
            if found := _MISSING.fullmatch(reason):
                raise _no_such_column(where, found[1], columns) from None
            if isinstance(error, TypeError) and (mixed := _mixed_types(where, paths, columns, reason)):
                raise mixed from None
            kind = type(error).__name__
            raise RowError(where, f"{kind}: {reason}; mend the row or {where}", kind=kind) from None


def _mixed_types(where: str, paths: set[str], columns: Mapping[str, Any], reason: str) -> RowError | None:
    """What an operator cannot take of a column, as `score > 5` where the score is text; None where it is no column."""
    types, read = _TYPE.findall(reason), dict[str, Any]()
    for path in sorted(paths):
        with suppress(RowError):
            read[path] = look_up(_variables(columns), path)
    for kind, fix in _FIXES.items():
        others = sorted({_KINDS.get(other, other) for other in types} - {_KINDS[kind]})
        for path, value in read.items():
            if kind in types and type(value).__name__ == kind:
                said = f"{_KINDS[kind]}, which {where} uses with {' and '.join(others) or _KINDS[kind]} ({reason})"
                return RowError(path, f"{said}; {fix.format(name=path)}", value, kind=f"{where}: {reason}")
    if len(read) != 1:
        return None
    ((path, value),) = read.items()
    return RowError(path, f"{where} cannot use it: {reason}; mend the row or {where}", value, reason)


def _no_such_column(where: str, name: str, columns: Mapping[str, Any]) -> RowError:
    reason = f"no such column: {name}; name one of {', '.join(columns)}{did_you_mean(name, columns)}"
    return RowError(where, reason)


def _variables(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns by name, and all of them as `row`, for names that Jinja does not read."""
    return {**columns, "row": columns}


def _after(text: Any, mark: str) -> str:
    """What stands after the last `mark`. Raises ValueError where there is none."""
    _, found, rest = str(text).rpartition(mark)
    if not found:
        raise ValueError(f"{str(text)[-60:]!r} has no {mark!r}")
    return rest.strip()


def _boxed(value: Any) -> str:
    r"""The content of the last \boxed{...}. Raises ValueError where there is none."""
    text = str(value)
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        raise ValueError(f"{text[-60:]!r} has no \\boxed{{...}}")
    begin = end = text.index("{", start) + 1
    depth = 1
    while end < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0) * (text[end - 1] != "\\")
        end += 1
    if depth:
        raise ValueError(f"{text[start : start + 60]!r} does not end")
    return text[begin : end - 1].strip()


def _from_json(text: Any) -> Any:
    """The value of a JSON text; a value that is none already stays."""
    return json.loads(text) if isinstance(text, str) else text


def _letter(value: Any) -> str:
    """The letter of a choice: of its index from 0, or of a letter in any case. Raises ValueError for others."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 26:
        return chr(ord("A") + value)
    text = str(value).strip().strip("().").upper()
    if text.isdecimal() and int(text) < 26:
        return chr(ord("A") + int(text))
    if len(text) == 1 and "A" <= text <= "Z":
        return text
    raise ValueError(f"{value!r} is neither a letter nor the index of a choice")
