"""What kind of answer a text is: one expression, a collection, an equation, a set of real numbers, a matrix.

Taken apart here rather than in the parser's grammar: each expression is then parsed by itself, which is fast, and two
answers are compared part by part, which is the same in both directions.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import is_expr_of_only_symbols

from services.reward.verifiers.math import notation, scalars
from services.reward.verifiers.math.evaluation import mpf
from services.reward.verifiers.math.regions import Region, everything, interval, nothing, single

_MAX_ITEMS = 100
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[=<>]")
_SET_OPERATION = re.compile(r"\\(?:cup|cap|setminus|backslash)(?![A-Za-z])")
_SEPARATOR = re.compile(r"[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_BUILDER = re.compile(
    r"\\\{ ?(?:\(?[A-Za-z](?: ?, ?[A-Za-z])*\)?) ?(?:\\in ?\\mathbb ?\{?R\}? ?)?"
    r"(?:\\mid(?![A-Za-z])|\||:)(?P<condition>.*)\\\}"
)
_MEMBER = re.compile(r" ?[A-Za-z] ?\\in(?![A-Za-z])(?P<set>.*)")
_REALS = re.compile(r"\\mathbb ?\{? ?R ?\}?|\\R")
_TOKEN = re.compile(r"\\\\|\\[{}]|\\[A-Za-z]+|[()\[\]{}]|.", re.DOTALL)
_NAME = re.compile(r"[A-Za-z](?:_\{?\w\}?)?")


@dataclass(frozen=True, slots=True)
class Scalar:
    """One expression."""

    expression: Any


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Items:
    """A collection: `brackets` is "{" of a set, "" of a list, else both, as "(]" of an interval from a (open) to b."""

    brackets: str
    items: tuple["Structure", ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """Equations a = b = c, or an inequality in several variables or of higher degree: sides, operators between."""

    operators: tuple[str, ...]
    sides: tuple[Any, ...]
    names: tuple[str, ...]  # the text of the sides


Structure = Scalar | Matrix | Items | Relation | Region


@lru_cache(maxsize=4096)
def read(text: str) -> Structure | None:
    """None where the text, or a part of it, cannot be read."""
    text = text.strip()
    if scalars.depth(text) > scalars.MAX_DEPTH:
        return None
    if built := _BUILDER.fullmatch(text):
        return read(built["condition"].strip())
    if member := _MEMBER.fullmatch(text):
        return read(member["set"])
    parts, separators = _split(text, _SEPARATOR)
    if len(parts) > 1:
        return _list(parts, separators)
    parts, separators = _split(text, _SET_OPERATION)
    if len(parts) > 1:
        return _combined([read(part) for part in parts], separators)
    parts, separators = _split(text, _RELATION)
    if len(parts) > 1:
        return _relation(parts, separators)
    if text == "\\emptyset":
        return Items("{", ())
    if _REALS.fullmatch(text):
        return everything()
    inner = _bracketed(text)
    if inner is not None:
        return inner
    if _PLUS_MINUS.search(text):
        return _expanded([text], "")
    return _single(text)


def _single(text: str) -> Structure | None:
    expression = scalars.parse(text)
    if isinstance(expression, sympy.MatrixExpr):
        expression = expression.doit()
    if isinstance(expression, sympy.MatrixBase):
        return Matrix(tuple(tuple(expression.row(i)) for i in range(expression.rows)))
    return Scalar(expression) if isinstance(expression, sympy.Expr) else None


def _split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts between separators that are in no brackets, and these separators."""
    if not separator.search(text):
        return [text], []
    parts, separators, level, start, position = [], [], 0, 0, 0
    while position < len(text):
        if level == 0 and (found := separator.match(text, position)):
            parts.append(text[start:position])
            separators.append(found[0].strip())
            start = position = found.end()
            continue
        token = _TOKEN.match(text, position)
        assert token is not None  # noqa: S101  # it matches any character
        level += (token[0] in ("(", "[", "{", "\\{", "\\begin")) - (token[0] in (")", "]", "}", "\\}", "\\end"))
        position = token.end()
    parts.append(text[start:])
    return parts, separators


def _bracketed(text: str) -> Structure | None:
    """A set, tuple or interval; None where the outer brackets are none of these."""
    if text.startswith("\\{") and text.endswith("\\}"):
        return _expanded(_split(text[2:-2], _SEPARATOR)[0], "{")
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
        return None
    parts, _ = _split(text[1:-1], _SEPARATOR)
    return _expanded(parts, text[0] + text[-1]) if len(parts) > 1 and all(p.strip() for p in parts) else None


def _expanded(parts: list[str], brackets: str) -> Items | None:
    """With one item for each sign of \\pm; a tuple with \\pm in it is a list of two tuples."""
    if len(parts) > _MAX_ITEMS:
        return None
    if brackets in ("{", ""):
        texts = [variant for part in parts for variant in _variants(part)]
        items = [read(text) for text in texts if text.strip()]
    else:
        texts = _variants(",".join(parts))
        if len(texts) > 1:
            items, brackets = [read(f"{brackets[0]}{text}{brackets[1]}") for text in texts], ""
        else:
            items = [read(part) for part in parts]
    known = [item for item in items if item is not None]
    return Items(brackets, tuple(known)) if len(known) == len(items) else None


def _variants(text: str) -> list[str]:
    if not _PLUS_MINUS.search(text):
        return [text]
    upper = _PLUS_MINUS.sub(lambda match: "+" if match[0] == "\\pm" else "-", text)
    lower = _PLUS_MINUS.sub(lambda match: "-" if match[0] == "\\pm" else "+", text)
    return [upper.strip(), lower.strip()]


def _list(parts: list[str], separators: list[str]) -> Structure | None:
    parts = [part for part in parts if part.strip()]
    if len(parts) == 1:
        return read(parts[0])
    items = _expanded(parts, "")
    if items is None:
        return None
    regions = [item for item in items.items if isinstance(item, Region)]
    words = {word for word in separators if word.isalpha()}
    if len(regions) == len(parts) and len(words) == 1:
        return _combined([*items.items], ["\\cup" if "or" in words else "\\cap"] * (len(parts) - 1))
    return items


def _combined(parts: list[Structure | None], operators: list[str]) -> Structure | None:
    """Unions and the like, from left to right."""
    regions = [region(part) for part in parts if part is not None]
    whole = [part for part in regions if part is not None]
    if len(whole) < len(parts):
        return None
    result = whole[0]
    for operator, other in zip(operators, whole[1:], strict=True):
        result = (
            result.union(other)
            if operator == "\\cup"
            else result.both(other)
            if operator == "\\cap"
            else result.without(other)
        )
    return result


def region(structure: Structure) -> Region | None:
    """The real numbers that a structure describes; None where it is something else."""
    if isinstance(structure, Region):
        return structure
    if isinstance(structure, Items):
        numbers = [scalars.number(item.expression) if isinstance(item, Scalar) else None for item in structure.items]
        known = [value.number for value in numbers if value is not None and isinstance(value.number, mpf)]
        if len(known) < len(numbers):
            return None
        if structure.brackets in ("{", ""):
            result = nothing()
            for value in known:
                result = result.union(single(value))
            return result
        if len(known) == 2 and known[0] <= known[1]:
            return interval(known[0], known[1], structure.brackets[0] == "[", structure.brackets[1] == "]")
    return None


def _relation(parts: list[str], operators: list[str]) -> Structure | None:
    names = tuple(part.strip() for part in parts)
    if all(operator == "=" for operator in operators):
        last = read(names[-1])
        if isinstance(last, Items | Region | Matrix):  # x = \pm 2, S = \{1, 2\}
            return last if is_name(names[0]) else None
        sides = [scalars.parse(name) for name in names]
        if last is None or any(side is None and not is_name(name) for side, name in zip(sides, names, strict=True)):
            return None
        return Relation(tuple(operators), tuple(sides), names)
    sides = [scalars.parse(name) for name in names]
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return None
    result: Region | None = everything()
    for left, operator, right in zip(sides, operators, sides[1:], strict=False):
        half = Region.of_inequality(left, operator, right)
        result = result.both(half) if result and half else None
    return result or Relation(tuple(operators), tuple(sides), names)


def is_name(text: str) -> bool:
    """Is it what has a value, on the left of "=": x, f(2), AB, m + n, \\text{Area}?"""
    if notation.is_words(text) or _NAME.fullmatch(text):
        return True
    expression = scalars.parse(text)
    if expression is None:
        return not any(c.isdigit() or c in "+*/<>|" for c in text)
    if isinstance(expression, sympy.core.function.AppliedUndef):
        return True
    return bool(is_expr_of_only_symbols(expression)) and not expression.atoms(sympy.Function)  # |x| has a function


def value(relation: Relation) -> Structure | None:
    """The 5 of x = 5, and of 2 + 3 = 5; None where an equation says something else, as x + 1 = 5 does."""
    if any(operator != "=" for operator in relation.operators):
        return None
    if is_name(relation.names[0]):
        return read(relation.names[-1])
    first, last = relation.sides[0], relation.sides[-1]
    if scalars.number(first) is None:
        return None
    if len(relation.sides) == 2 and is_name(relation.names[-1]):
        return Scalar(first)
    return Scalar(last) if scalars.same(first, last, decimals=6) else None
