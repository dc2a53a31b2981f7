"""Units of measure behind a quantity: which one, and how many of the base unit it is."""

import re
from dataclasses import dataclass
from fractions import Fraction

_LENGTH, _MASS, _TIME, _ANGLE, _DATA, _DOLLAR, _EURO, _POUND, _YEN, _RUPEE, _CELSIUS, _FAHRENHEIT, _KELVIN = range(13)
_KINDS = 13
Dimension = tuple[int, ...]  # exponents of the thirteen


@dataclass(frozen=True, slots=True)
class Unit:
    """`factor` base units: metre, kilogram, second, dollar, degree, byte."""

    dimension: Dimension
    factor: Fraction


def _table() -> dict[str, Unit]:
    rows: list[tuple[int, int, str, str]] = [  # base, exponent, factor, names; a plural s is understood
        (_LENGTH, 1, "1", "m meter metre"),
        (_LENGTH, 1, "1/100", "cm centimeter centimetre"),
        (_LENGTH, 1, "1/1000", "mm millimeter millimetre"),
        (_LENGTH, 1, "1000", "km kilometer kilometre"),
        (_LENGTH, 1, "0.0254", "in inch inches"),
        (_LENGTH, 1, "0.3048", "ft foot feet"),
        (_LENGTH, 1, "0.9144", "yd yard"),
        (_LENGTH, 1, "1609.344", "mi mile"),
        (_LENGTH, 2, "10000", "hectare"),
        (_LENGTH, 3, "1/1000", "l L liter litre"),
        (_LENGTH, 3, "1/1000000", "ml mL milliliter millilitre cc"),
        (_MASS, 1, "1", "kg kilogram"),
        (_MASS, 1, "1/1000", "g gram"),
        (_MASS, 1, "1/1000000", "mg milligram"),
        (_MASS, 1, "1000", "tonne"),
        (_MASS, 1, "0.45359237", "lb pound"),
        (_MASS, 1, "0.028349523125", "oz ounce"),
        (_TIME, 1, "1", "s sec second"),
        (_TIME, 1, "60", "min minute"),
        (_TIME, 1, "3600", "h hr hour"),
        (_TIME, 1, "86400", "day"),
        (_TIME, 1, "604800", "week"),
        (_DOLLAR, 1, "1", "dollar USD"),
        (_DOLLAR, 1, "1/100", "cent"),
        (_EURO, 1, "1", "euro EUR"),
        (_POUND, 1, "1", "GBP"),
        (_YEN, 1, "1", "yen JPY"),
        (_RUPEE, 1, "1", "rupee INR"),
        (_ANGLE, 1, "1", "degree deg"),
        (_CELSIUS, 1, "1", "celsius"),  # temperatures have no common zero: they are not converted
        (_FAHRENHEIT, 1, "1", "fahrenheit"),
        (_KELVIN, 1, "1", "kelvin"),
        (_DATA, 1, "1", "byte"),
        (_DATA, 1, "1/8", "bit"),
    ]
    table = {}
    for base, exponent, factor, names in rows:
        dimension = tuple(exponent if i == base else 0 for i in range(_KINDS))
        for name in names.split():
            table[name] = Unit(dimension, Fraction(factor))
            if len(name) > 1:
                table.setdefault(f"{name}s", table[name])
    hour, mile, kilometre = table["hour"], table["mile"], table["km"]
    table["mph"] = _product(mile, hour, -1)
    table["kmh"] = table["kmph"] = table["kph"] = _product(kilometre, hour, -1)
    return table


def _product(a: Unit, b: Unit, exponent: int) -> Unit:
    dimension = tuple(x + exponent * y for x, y in zip(a.dimension, b.dimension, strict=True))
    return Unit(dimension, a.factor * b.factor**exponent)


_NONE = Unit((0,) * _KINDS, Fraction(1))
_UNITS = _table()
_SINGLE = frozenset(name for name in _UNITS if len(name) == 1)

_SPACE = r"(?:\s|~|\\[ ,;:!]|\\q?quad\b)"
_COMMAND = r"\\(?:text|textrm|textnormal|mathrm|mathit|mbox|operatorname|rm)\s*\{[^{}]*\}"
_POWER = r"\^\s*(?:[1-4]|\{\s*-?[1-4]\s*\})"
_WORD = rf"[A-Za-z]+(?:{_POWER})?"
_IN_TEXT = re.compile(
    rf"(?P<quantity>.*?[^\s^_]){_SPACE}*(?P<unit>{_COMMAND}(?:{_SPACE}|{_COMMAND}|{_POWER}|/|\\cdot)*)"
)
_PLAIN = re.compile(
    rf"(?P<quantity>.*[\d)}}]|.*\\pi\b)(?P<space>{_SPACE}*)(?P<unit>{_WORD}(?:\s(?:per\s)?{_WORD})*(?:\s?/\s?{_WORD})?)",
    re.DOTALL,
)
_WORDS = re.compile(r"[A-Za-z]{3,}(?:\s[A-Za-z]{3,})*")
# Words that say something about the number before them: "3 is wrong", "3 or 4", "3 or more"
_NO_UNIT = re.compile(
    r"(?<![\^{-])\d|\b(?:and|or|nor|is|are|was|not?|but|if|maybe|perhaps|then|to|than|wrong|incorrect|false|either|neither|most|least|about|otherwise)\b",
    re.IGNORECASE,
)
_DEGREES = re.compile(r"(?P<quantity>.*\S)\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*", re.DOTALL)
_TEMPERATURE = re.compile(
    r"(?P<quantity>.*\S)\s?\^\s?\{?\s?\\circ\s?\}?\s?(?:\\(?:text|mathrm)\s?\{\s?)?(?P<scale>[CFK])(?:\s?\})?",
    re.DOTALL,
)
_SCALES = {"C": "celsius", "F": "fahrenheit", "K": "kelvin"}
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "GBP", "¥": "yen", "₹": "rupee"}
_SIGN_BEFORE = re.compile(r"(?P<minus>-?)\s?(?:\\?(?P<sign>[$€£¥₹])|USD\b)\s?(?P<quantity>.+)", re.DOTALL)
_SIGN_BEHIND = re.compile(r"(?P<quantity>.+?)\s?\\?(?P<sign>[$€£¥₹])", re.DOTALL)
_TOKEN = re.compile(rf"/|\bper\b|\\cdot|(?:(?P<prefix>square|cubic|sq|cu)\s+)?(?P<name>[A-Za-z]+)(?P<power>{_POWER})?")


def split(text: str, letters_are_units: bool) -> tuple[str, Unit | None]:
    """A quantity and its unit, if it ends in one that is known.

    Words in \\text{...} after a quantity go, known or not ("5\\text{ apples}" is 5). Bare words go only if they are
    known units, and single letters, which may be variables, only after a space. With `letters_are_units`, for
    where a plain number is expected, all bare words go.
    """
    if match := _SIGN_BEFORE.fullmatch(text):
        return match["minus"] + match["quantity"], _UNITS[_CURRENCIES[match["sign"] or "$"]]
    if match := _SIGN_BEHIND.fullmatch(text):
        return match["quantity"], _UNITS[_CURRENCIES[match["sign"]]]
    if match := _TEMPERATURE.fullmatch(text):
        return match["quantity"], _UNITS[_SCALES[match["scale"]]]
    if match := _DEGREES.fullmatch(text):
        return match["quantity"], _UNITS["degree"]
    if match := _IN_TEXT.fullmatch(text):
        if "\\text" in match["quantity"] or "\\mathrm" in match["quantity"]:
            return text, None
        if _NO_UNIT.search(match["unit"]):
            return text, None
        bare = re.sub(r"\s*\}\s*\^", "^", _keep_powers(match["unit"]))
        return match["quantity"], _parse(re.sub(r"\\(?:[a-z]+\s*\{|[ ,;:!])|[{}~]", " ", bare))
    if match := _PLAIN.fullmatch(text):
        unit = _parse(_keep_powers(match["unit"]))
        if unit and (match["space"] or match["unit"] not in _SINGLE):
            return match["quantity"], unit
        if (
            letters_are_units
            and match["space"]
            and _WORDS.fullmatch(match["unit"])
            and not _NO_UNIT.search(match["unit"])
        ):
            return match["quantity"], None
    return text, None


def _keep_powers(text: str) -> str:
    return re.sub(r"\^\s*\{\s*(-?\d)\s*\}", r"^\1", text)


def _parse(text: str) -> Unit | None:
    """One unit from the words of "square metres", "km/h" or "miles per hour"; None where one of them is none."""
    unit, sign, found = _NONE, 1, False
    text = text.strip()
    while text:
        token = _TOKEN.match(text)
        if token is None:
            return None
        text = text[token.end() :].lstrip()
        if token["name"] is None or token["name"] == "per":
            sign = sign if token[0] == "\\cdot" else -1
            continue
        base = _UNITS.get(token["name"]) or _UNITS.get(token["name"].lower())
        if base is None:
            return None
        power = int(re.sub(r"[^-\d]", "", token["power"])) if token["power"] else 1
        power *= {"square": 2, "sq": 2, "cubic": 3, "cu": 3}.get(token["prefix"] or "", 1)
        unit, found = _product(unit, base, sign * power), True
    return unit if found else None
