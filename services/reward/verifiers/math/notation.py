"""Final answers as people and models write them, brought to the LaTeX that math-verify reads."""

import re

_CHARACTERS = str.maketrans(
    {
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "−": "-", "–": "-", "±": r"\pm ", "π": r"\pi ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ",
        "∈": r"\in ", "ℝ": r"\mathbb{R}", "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}",
        "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    }
)  # fmt: skip
_STEPS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"√\s*(\d+|\{[^{}]*\})", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|Biggl?|Biggr)(?![A-Za-z])\s*", ""),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\s*\\text\s*\{\s*(?:percent|percentage|pct)\s*\}|\s*\b(?:percent|percentage|pct)\b", r"\\%"),
        (r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*", ""),
        # 12 000, 12\,000 and 12{,}000; twice, because the groups of 1 000 000 touch
        *[(r"(?<![\d.])(\d{1,3}(?:\d{3})*)(?:\s|~|\\[,;:! ]\s*|\{,\}|,\\!\s*)(\d{3})(?!\d)", r"\1\2")] * 2,
        (r"^(-?\d+(?:\.\d+)?)[eE]\+?(-?\d+)$", r"\1\\times 10^{\2}"),
        (r"(?<=\d)\s*\(", r"\\cdot("),  # math-verify reads 2(3) as the mixed number 2 + 3
        (r"(?<=\d)\.(?!\d)", ""),
    )
)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?")
_WHOLE_TEXT = re.compile(r"\\(?:text|textrm|textbf|textnormal|mathrm|mathbf|mbox|textit)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\(([A-Za-z])\)")
_WORDS = re.compile(r"(?:yes|no|true|false|none|[A-Za-z]{4,}|[A-Za-z]+(?:[ '-]+[A-Za-z]+)+)\.?", re.IGNORECASE)

_NUMBER = re.compile(
    r"[-+]?\s*(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+|\d*\s*\\[dtc]?frac\s*(?:\{\s*-?\d+\s*\}|\d)\s*(?:\{\s*-?\d+\s*\}|\d)|\d+\s*/\s*\d+)"
    r"\s*(?:\\?%)?"
)
_SCIENTIFIC = re.compile(r"(?:\\times|\\cdot|\*)\s*10\s*\^")
_OPERATORS = re.compile(
    r"[+*!]|\\(?:times|cdot|div|[lr]floor|[lr]ceil|gcd|bmod|max|min)(?![A-Za-z])|(?<=[^\s({^,])\s*-"
)
_OPEN_WORK = re.compile(
    r"\\(?:sum|prod|i*int|oint|lim|[dt]?binom|det)(?![A-Za-z])|\\frac\s*\{\s*d\s*\}|\\frac\s*\{\s*\\partial"
)
_ASSIGNMENT = re.compile(r"\s*(?P<name>[A-Za-z](?:_\{?\w\}?)?)\s*=\s*(?P<value>[^=]+?)\s*")
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}(?![A-Za-z}])")
_BASE = re.compile(r"(?P<digits>-?[0-9A-Fa-f]+)_\s*\{?\s*(?P<base>\d{1,2})\s*\}?")


def clean(text: str) -> str:
    """One spelling for signs, brackets, percent, repeating decimals, empty sets and groups of thousands."""
    text = _REPEATING.sub(_fraction, text.translate(_CHARACTERS))
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    text = text.strip().strip(",;").strip()
    if whole := _WHOLE_TEXT.fullmatch(text):
        text = whole[1].strip()
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else text


def point(text: str) -> str:
    """The values of "y = 3, x = 2" as the point (2,3), in the order of the names; other text as it is."""
    parts = [_ASSIGNMENT.fullmatch(part) for part in re.split(r",|\\text\s*\{\s*and\s*\}|\band\b", text)]
    found = [part for part in parts if part]
    if len(found) < 2 or len(found) < len(parts) or len({part["name"] for part in found}) < len(found):
        return text
    return f"({','.join(part['value'] for part in sorted(found, key=lambda part: str(part['name'])))})"


def _fraction(match: re.Match[str]) -> str:
    """0.1\\overline{6} is (16 - 1) / 90."""
    whole, fixed, repeating = match.groups()
    numerator = int(f"{whole}{fixed}{repeating}") - int(f"{whole}{fixed}" or "0")
    return rf"\frac{{{numerator}}}{{{'9' * len(repeating)}{'0' * len(fixed)}}}"


def is_words(text: str) -> bool:
    """Is it language rather than mathematics: \\text{...}, four letters or more, or words with spaces between?"""
    return _WORDS.fullmatch(text.strip()) is not None


def is_prose(text: str) -> bool:
    """Are there more bare words than any formula has? The parser would take them for products of letters."""
    return len(_PROSE.findall(text)) > 2


def depth(text: str) -> int:
    """How deep brackets and braces of any kind are nested. The parser's time grows exponentially with it."""
    deepest = level = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        deepest = max(deepest, level)
    return deepest


def words(text: str) -> str:
    """What two texts have in common that say the same: their letters and digits."""
    return "".join(c for c in re.sub(r"\\[a-z]+\s*(?=\{)", "", text).casefold() if c.isalnum())


def is_number(text: str) -> bool:
    """Is it one number, written out: an integer, a decimal, a fraction, a mixed number, a percentage?"""
    return _NUMBER.fullmatch(text.strip()) is not None


def needs_work(text: str, gold: str, gold_is_number: bool) -> bool:
    """Is there something left to compute that the reference does not have: a sum, an integral, 12 \\times 13?

    Powers, roots and logarithms are forms of a number; products, sums and factorials of numbers are questions.
    """
    value = re.split(r"(?<![\\<>!])=(?![^{}]*\})", text)[-1].strip().removeprefix("+")
    if _OPEN_WORK.search(value) and not _OPEN_WORK.search(gold):
        return True
    return gold_is_number and _OPERATORS.search(_SCIENTIFIC.sub("", value)) is not None


def base(text: str) -> tuple[str, str] | None:
    """Digits and base of a number like 1010_2."""
    match = _BASE.fullmatch(text.strip())
    return (match["digits"].lower(), match["base"]) if match else None


def brackets(text: str) -> str:
    """What kind of collection the outer brackets say it is: "{" a set, "(" a point or an interval, "" neither."""
    text = text.strip()
    if text.startswith("\\{") and text.endswith("\\}"):
        return "{"
    return "(" if text[:1] in ("(", "[") and text[-1:] in (")", "]") and "," in text else ""
