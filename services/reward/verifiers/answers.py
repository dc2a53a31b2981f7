"""Where the answer stands in a response.

Only what is final counts: thoughts do not, of several boxes the last does, and a box that was cut off is no answer.
"""

import re
from typing import Literal

Part = Literal["response", "after_thoughts", "answer"]
PART = "what is judged: all of the response, what follows </think>, or the final answer"

THINK = "think"

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# What may stand between two boxes that are one answer, as in "x = \boxed{2} or x = \boxed{-3}".
_BETWEEN = re.compile(
    r"[\s$.,;&*\\()]{0,12}(?:\\text\s?\{)?\s?(?:and|or)?\s?\}?[\s$,;&*\\()]{0,12}(?:[A-Za-z](?:_\w)?\s?=\s?)?"
)
_STATED = re.compile(
    r"(?:####|(?:\b(?:final|correct)\s+)?\banswer(?:\s+(?:is|to\b[^.:\n]{0,80}\bis)\b\s*:?|\*{0,2}\s*[:=]))[ \t*]*",
    re.IGNORECASE,
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\[", "\\]"), ("\\(", "\\)"), ("**", "**"), ("`", "`"))


def after_thoughts(response: str, tag: str = THINK) -> str:
    """What follows the thoughts; nothing where they never end."""
    head, closed, tail = response.rpartition(f"</{tag}>")
    if f"<{tag}>" in tail:
        return ""
    return tail if closed else head + tail


def final(response: str, whole: int = 0) -> str | None:
    """The answer of a response, or None where it gives none.

    In this order: the last \\boxed{...}, with its neighbours where they are one list; what follows the last
    "answer is", "Answer:" or "####" on its line; the whole response, if it is one line of at most `whole` characters.
    """
    text = after_thoughts(response)
    if _BOX.search(text):
        return boxed(text)
    if stated := list(_STATED.finditer(text)):
        line, _, _ = text[stated[-1].end() :].partition("\n")
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

    None where there is no box, or where the last one is not closed.
    """
    boxes: list[tuple[int, int, str]] = []  # start, end, content; outermost only
    position = 0
    while opening := _BOX.search(text, position):
        end = _closing(text, opening.end())
        if end is None:
            return None
        boxes.append((opening.start(), end, text[opening.end() : end - 1]))
        position = end
    if not boxes:
        return None
    start, _, last = boxes[-1]
    contents = [last]
    for before, end, content in reversed(boxes[:-1]):
        if not _BETWEEN.fullmatch(text[end:start][:100]):
            break
        contents.insert(0, content)
        start = before
    distinct = dict.fromkeys(unwrap(boxed(content) or content) for content in contents)
    return ",".join(distinct)


def unwrap(text: str) -> str:
    """Without the marks of mathematics and of emphasis around it, and without a final full stop."""
    text = text.strip()
    text = text[:-1].rstrip() if text.endswith(".") else text
    for opening, closing in _WRAPPERS:
        inner = text[len(opening) : len(text) - len(closing)]
        if len(text) > len(opening) + len(closing) and text == opening + inner + closing and opening not in inner:
            return unwrap(inner)
    return text


def _closing(text: str, position: int) -> int | None:
    """Where the brace that was opened just before `position` is closed: the index after it."""
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, position):
        if brace[0] in "{}":
            depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return None
