"""Where the answer stands in a response.

Only what is final counts: thoughts do not, of several boxes the last does, and a box that was cut off is no answer.
Every pattern here is linear in the response, which may be long and hostile.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

Part = Literal["response", "after_thoughts", "answer"]
PART = "what is judged: all of the response, what follows </think>, or the final answer"

THINK = "think"

# The tags of DeepSeek-R1 and Qwen, of older reasoning data, of Magistral, and of Kimi.
THOUGHTS = (
    *((f"<{tag}>", f"</{tag}>") for tag in (THINK, "thinking", "thought", "reasoning")),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
_QUOTES = "\"'`"
_QUOTED = 200  # characters after a tag within which its quote must end

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


def after_thoughts(response: str, tag: str = THINK) -> str:
    """What is no thought; nothing where thoughts never end.

    Thoughts run from an opening tag to the first closing one, and from the start where the prompt has opened them. A
    tag in quotes, as in `print("</think>")`, is text.
    """
    pairs = THOUGHTS if tag == THINK else ((f"<{tag}>", f"</{tag}>"),)
    for opening, closing in pairs:
        if opening in response or closing in response:
            response = _without(response, opening, closing)
    return response


def final(response: str, whole: int = 0) -> str | None:
    """The answer of a response, or None where it gives none.

    In this order: the content of the last <answer>...</answer>, read as a response of its own; the last \\boxed{...},
    with its neighbours where they are one list; what follows the last "answer is", "Answer:" or "####" on its line or
    the next; the whole response, if it is one line of at most `whole` characters.
    """
    text = after_thoughts(response)
    content = tagged(text)
    if content is None:
        return None
    text, whole = content or text, max(whole, len(content))
    if _BOX.search(text):
        return boxed(text)
    stated = None
    for stated in _STATED.finditer(text):  # noqa: B007  # the last one is meant
        pass
    if stated:
        line, _, _ = text[stated.end() :].lstrip(" \t*_").lstrip().partition("\n")
        return unwrap(re.split(r"\.\s", line, maxsplit=1)[0]) or None
    text = text.strip()
    return unwrap(text) or None if len(text) <= whole and "\n" not in text else None


def part(response: str, which: Part) -> str | None:
    """What of a response is judged; None where it has no such part."""
    if which == "answer":
        return final(response, whole=len(response))
    return response if which == "response" else after_thoughts(response) or None


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


def _without(text: str, opening: str, closing: str) -> str:
    kept: list[str] = []
    position, within, first = 0, False, True
    for at, opens in _tags(text, opening, closing):
        if opens and not within:
            kept.append(text[position:at])
            within = True
        elif not opens and (within or first):
            position, within = at + len(closing), False
        first = False
    return "" if within else "".join(kept) + text[position:]


def _tags(text: str, opening: str, closing: str) -> Iterator[tuple[int, bool]]:
    """Where each tag is, and whether it is an opening one; those in quotes left out."""
    for match in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", text):
        quote = text[match.start() - 1 : match.start()]
        if not (quote and quote in _QUOTES and quote in text[match.end() : match.end() + _QUOTED].partition("\n")[0]):
            yield match.start(), match[0] == opening


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
