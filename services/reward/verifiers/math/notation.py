"""Final answers as people and models write them, brought to one spelling."""

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_CHARACTERS = str.maketrans(
    {
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "∶": ":",
        "−": "-", "–": "-", "—": "-", "±": r"\pm ", "∓": r"\mp ", "π": r"\pi ", "≤": r"\le ", "≥": r"\ge ",
        "⩽": r"\le ",
        "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ",
        "∈": r"\in ", "∖": r"\setminus ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "°": r"^\circ ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "¢": r"\text{ cents}", "⟨": "(", "⟩": ")", "∣": "|", "\u200b": "", "\ufeff": "",
    }
)  # fmt: skip
# Commands that change the look and not the meaning; a row of a matrix ends in \\, which is none of them.
_LOOKS = re.compile(
    r"\\\\|(?P<thousands>(?<=\d)(?:\{,\}|,\s?\\!)\s?)"
    r"|(?P<space>\\[,;: ]|~|\\q?quad(?![A-Za-z])|\\[hv]space\s?\{[^{}]*\})"
    r"|(?P<nothing>\\!|\\(?:displaystyle|textstyle|limits|left|right|middle|[bB]igg?[lr]?)(?![A-Za-z])\s?)"
)
_STEPS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"√\s?(\d+|\{[^{}]*\})", r"\\sqrt{\1}"),
        (r"√\s?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:leqslant|leq)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geqslant|geq)(?![A-Za-z])", r"\\ge "),
        (r"\\neq(?![A-Za-z])", r"\\ne "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\\varnothing(?![A-Za-z])|\\\{\s?\\\}", r"\\emptyset "),
        (
            r"\\(?:mathrm|mathit|mathbf|text|textrm|textit|operatorname)\s?\{\s?([A-Za-z])\s?\}(?=[\s^)}+*/,=-]|$)",
            r" \1",
        ),
        (r"\\(?:mathrm|mathit)\s([A-Za-z])(?![A-Za-z])|\{\\rm\s([A-Za-z])\}", r" \1\2"),
        (r"\s?\\text\s?\{\s?(?:percent|percentage|pct)\s?\}|\s?\b(?:percent|percentage|pct)\b", r"\\%"),
        (r"\\text\s?\{[\s,]{0,2}(and|or)\b\s?([^{}]*)\}", r" \1 \2 "),
        (r"\\(?:vee|lor)(?![A-Za-z])", " or "),
        (r"\\(?:wedge|land)(?![A-Za-z])", " and "),
        # words for commands: 288pi, sqrt(2), sin x
        (r"(?<![A-Za-z\\])(pi|sqrt|arcsin|arccos|arctan|sin|cos|tan|sec|csc|cot|log|ln|infty)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![\d\\.}])(-?\d+) (\d+) ?/ ?(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),  # 1 1/4
        (r"^(-?\d+(?:\.\d+)?)[eE]\+?(-?\d+)$", r"\1\\times 10^{\2}"),
        (r"(?<=\d)\.(?!\d)", ""),
        (r"\\(?:approx|thickapprox|simeq)(?![A-Za-z])", " = "),
        (r"\\degree(?![A-Za-z])", r"^\\circ "),
        (r"\\(?:pounds|textsterling)(?![A-Za-z])", "£"),
        (r"\\(?:euro|texteuro)(?![A-Za-z])", "€"),
        (r"^\s?=", ""),
    )
)
# 12 000, and 12{,}000 or 12,\!000 as `_LOOKS` leaves them; a list has a space behind its commas: 1,000, 2,000
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?: |\{,\})\d{3})+(?!\d|,\d)")
_COMMAS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_BARE_COMMA = re.compile(r",(?! )")
_ROOT = re.compile(r"\\sqrt ?\(")
_BRACKETED = re.compile(r"\\[A-Za-z]+(?:[\^_](?:\w|\{[^{}]*\}))* ?\(|(?<=\d) ?\(")
_DOLLAR = re.compile(r"\\.|\$", re.DOTALL)
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
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}(?![A-Za-z}])")
_BASE = re.compile(r"(?P<digits>-?[0-9A-Fa-f]+)_\s*\{?\s*(?P<base>\d{1,2})\s*\}?")


def clean(text: str) -> str:
    """One spelling for characters, signs, brackets, percent, repeating decimals, empty sets, groups of thousands."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS))
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else c for c in text)
    text = _LOOKS.sub(_plain, _without_dollars(text))
    text = _REPEATING.sub(_fraction, " ".join(text.split()))
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    text = _BRACKETED.sub(_times, _with_braces(text))
    text = _GROUPED.sub(lambda match: re.sub(r"[ {},]", "", match[0]), " ".join(text.split()))
    text = _without_braces(_without_commas(text).strip(" ,;"))
    if whole := _WHOLE_TEXT.fullmatch(text):
        text = whole[1].strip()
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else text


def _times(match: re.Match[str]) -> str:
    """2(3) with the sign of a product, for it could be read as the mixed number 2 + 3; but \tan^2(x) as it is."""
    return match[0] if match[0].startswith("\\") else "\\cdot("


def _with_braces(text: str) -> str:
    r"""\sqrt{...} for sqrt(...)."""
    pieces, position = [], 0
    for root in _ROOT.finditer(text):
        if root.start() < position:
            continue
        end = closing(text, root.end())
        if end is not None:
            pieces += [text[position : root.start()], "\\sqrt{", text[root.end() : end - 1], "}"]
            position = end
    return "".join([*pieces, text[position:]])


def _without_braces(text: str) -> str:
    while text.startswith("{") and closing(text, 1) == len(text):
        text = text[1:-1].strip()
    return text


def closing(text: str, position: int) -> int | None:
    """The index behind the bracket that closes the one before `position`."""
    level = 1
    for index in range(position, len(text)):
        level += (text[index] in "({[") - (text[index] in ")}]")
        if level == 0:
            return index + 1
    return None


def _plain(match: re.Match[str]) -> str:
    if match["thousands"]:
        return "{,}"
    return " " if match["space"] else "" if match["nothing"] is not None else match[0]


def _without_dollars(text: str) -> str:
    """Without the marks of mathematics, as in "$125$ miles". One alone is a sign of money."""
    marks = [match for match in _DOLLAR.finditer(text) if match[0] == "$"]
    return text if len(marks) % 2 else _DOLLAR.sub(lambda match: " " if match[0] == "$" else match[0], text)


def _without_commas(text: str) -> str:
    """1,234 is a number, unless other commas without a space behind them, or brackets, make it a list."""
    without = _COMMAS.sub(lambda match: match[0].replace(",", ""), text)
    return text if _BARE_COMMA.search(without) or text.startswith(("(", "[", "\\{")) else without


def _fraction(match: re.Match[str]) -> str:
    """0.1\\overline{6} is (16 - 1) / 90."""
    whole, fixed, repeating = match.groups()
    numerator = int(f"{whole}{fixed}{repeating}") - int(f"{whole}{fixed}" or "0")
    return rf"\frac{{{numerator}}}{{{'9' * len(repeating)}{'0' * len(fixed)}}}"


def is_words(text: str) -> bool:
    """Is it language rather than mathematics: \\text{...}, four letters or more, or words with spaces between?"""
    names = [word for word in re.findall("[A-Za-z]+", text) if word not in ("and", "or")]
    return _WORDS.fullmatch(text.strip()) is not None and any(len(name) > 1 for name in names)


def is_prose(text: str) -> bool:
    """Are there more bare words than any formula has? The parser would take them for products of letters."""
    return len(_PROSE.findall(text)) > 2


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
