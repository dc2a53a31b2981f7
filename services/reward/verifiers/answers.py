"""Where the answer stands in a response.

Only what is final counts: thoughts do not, of several boxes the last does, and a box that was cut off is no answer.
Every pattern here is linear in the response, which may be long and hostile.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from services.reward.verifiers.base import Item
from services.reward.verifiers.thoughts import without

Part = Literal["response", "answer"]
PART = "what is judged: all of the text, or the final answer in it"

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?P<bare>[^\s{$][^\n$]{0,100})(?=\$)")  # $\boxed 5$: Hendrycks MATH
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_MAX_NESTED_BOXES = 16
# What may stand between two boxes that are one answer, as in "x = \boxed{2} \text{ or } x = \boxed{-3}".
_BETWEEN = re.compile(
    r"(?:\\q?quad\b|\\text\s?\{[\s,]{0,2}(?:and|or)\s?\}|[\s$.,;&*\\()]|\b(?:and|or)\b|[A-Za-z](?:_\w)?\s?=)*"
)
_MAX_BETWEEN = 100
_ANSWER_TAG = re.compile(r"<(?P<close>/?)answer>", re.IGNORECASE)
_VERB = r"(?:is|would\s+be|should\s+be|must\s+be)"
_STATED = re.compile(
    rf"####|(?<![A-Za-z])(?:answer(?:\s+(?:{_VERB}|to\b[^.:\n]{{0,80}}\b{_VERB})\b(?:\s+(?:therefore|thus|then|simply|just)\b)?"
    r"(?:\s*[:=])?|\*{0,2}\s*[:=])|final\s+answer\*{0,2}\s*\n)",
    re.IGNORECASE,
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\[", "\\]"), ("\\(", "\\)"), ("**", "**"), ("__", "__"), ("`", "`"))
# White space to the eye, and not to Python.
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def final(response: str, whole: int = 0, thinking: bool = False) -> str | None:
    """The answer of a response, or None where it gives none.

    Args:
        whole: characters up to which a response of one line is its own answer.
        thinking: whether an answer in thoughts counts, or they are taken out already.

    In this order: the content of the last <answer>...</answer>, read as a response of its own; the last \\boxed{...},
    with its neighbours where they are one list; what follows the last "answer is", "Answer:" or "####" on its line or
    the next; the whole response, if it is one line of at most `whole` characters.
    """
    text = response if thinking else without(response)
    content = tagged(text)
    if content is None:
        return None
    text, whole = content or text, max(whole, len(content))
    if _BOX.search(text):
        return boxed(text) or None
    stated = None
    for stated in _STATED.finditer(text):  # noqa: B007  # the last one is meant
        pass
    if stated:
        line, _, _ = text[stated.end() :].lstrip(" \t*_").lstrip().partition("\n")
        return unwrap(re.split(r"\.\s", line, maxsplit=1)[0]) or None
    text = text.strip()
    return unwrap(text) or None if len(text) <= whole and "\n" not in text else None


def part(text_of: Callable[..., str], item: Item, which: Part) -> str | None:
    """What of a response is judged; None where it has no such part.

    Args:
        text_of: the method `text` of the verifier.
    """
    if which == "answer":
        text = text_of(item, thinking=False)
        return final(text, whole=len(text), thinking=True)
    text = text_of(item)
    return text or None if item.response else text


def boxed(text: str) -> str | None:
    """The content of the last box, or the contents, joined with commas, of the last boxes that make one list.

    None where there is no box, where the last one is not closed, or where boxes are nested without end.
    """
    boxes: list[tuple[int, int, str]] = []  # start, end, content; outermost only
    position = 0
    while opening := _BOX.search(text, position):
        if opening["bare"]:
            end = opening.end()
            boxes.append((opening.start(), end, opening["bare"]))
        else:
            closing = _closing(text, opening.end())
            if closing is None:
                return None
            end = closing
            boxes.append((opening.start(), end, text[opening.end() : end - 1]))
        position = end
    if not boxes:
        return None
    start, _, last = boxes[-1]
    contents = [last]
    for before, end, content in reversed(boxes[:-1]):
        if start - end > _MAX_BETWEEN or not _BETWEEN.fullmatch(text, end, start):
            break
        contents.append(content)
        start = before
    opened = [_opened(content) for content in reversed(contents)]
    return None if None in opened else ",".join(dict.fromkeys(unwrap(content) for content in opened if content))


def tagged(text: str) -> str | None:
    """The content of the last <answer>...</answer>, "" where there is none, None where it does not end."""
    start: int | None = None
    content = ""
    for tag in _ANSWER_TAG.finditer(text):
        if not tag["close"]:
            start = tag.end()
        elif start is not None:
            content, start = text[start : tag.start()], None
    return content if start is None else None


def unwrap(text: str) -> str:
    """Without the marks of mathematics and of emphasis around it, and without a final full stop."""
    while True:
        before, text = text, text.strip()
        text = text[:-1].rstrip() if text.endswith(".") else text
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : len(text) - len(closing)]
            if len(text) > len(opening) + len(closing) and text == opening + inner + closing and opening not in inner:
                text = inner
        if text.count("**") == 1:  # of "**Answer: 5**", only the end is here
            text = text.removeprefix("**").removesuffix("**")
        if text == before:
            return text


def is_blank(text: str) -> bool:
    """Is there nothing to see: white space, control characters, and characters of no width?"""
    return all(c.isspace() or c in _BLANK_LETTERS or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def _opened(content: str) -> str | None:
    """What is in the innermost of boxes that are the content of one another."""
    for _ in range(_MAX_NESTED_BOXES):
        opening = _BOX.search(content)
        if opening is None or opening["bare"]:
            return content
        end = _closing(content, opening.end())
        if end is None:
            return content
        content = content[opening.end() : end - 1]
    return None


def _closing(text: str, position: int) -> int | None:
    """Where the brace that was opened just before `position` is closed: the index after it."""
    depth = 1
    for brace in _BRACES.finditer(text, position):
        if brace[0] in "{}":
            depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return None
