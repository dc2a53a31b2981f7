"""What of a response is judged: with its thoughts or without, with its special tokens or without.

Thoughts stand in tags (tags.py), or in the channels of GPT-OSS's Harmony format, of which only `final` is meant for the
user. Tags may be special tokens, which the text of a response leaves out: they are put back to find what is thought.
"""

import re
from collections.abc import Iterator, Sequence

from services.reward.verifiers import fences
from services.reward.verifiers.tags import THOUGHTS

_QUOTES = "\"'`"
_QUOTED = 200  # characters after a tag within which its quote must end
_OPENED = re.compile(rf"({'|'.join(re.escape(opening) for opening, _ in THOUGHTS)})\s*\Z")
_STARTS = re.compile(f"[{re.escape(''.join({opening[0] for opening, _ in THOUGHTS}))}]")
_ENDS = tuple({opening[-1] for opening, _ in THOUGHTS})
_PROMPT_END = 100  # characters of a prompt in which it opens thoughts

# Around the text of a special token: code points that are no characters.
_START, _END = "\ufde0", "\ufde1"
_UNMARK = dict.fromkeys(map(ord, (_START, _END)))
_SPECIAL = re.compile(f"{_START}[^{_END}]*{_END}")

_HARMONY = re.compile(rf"\s*(?:{_START}?<\|start\|>{_END}?assistant)?{_START}?<\|channel\|>")
_MESSAGE = re.compile(
    r"<\|channel\|>(?P<channel>[^<]{0,200})<\|message\|>(?P<content>.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_FINAL = "final"


def text_of(
    response: str,
    prompt: str,
    special_tokens: Sequence[tuple[int, str]],
    *,
    with_thinking: bool,
    with_special_tokens: bool,
) -> str:
    """The text of a response that is judged.

    Args:
        response: without special tokens.
        prompt: what it continues, which may have opened thoughts.
        special_tokens: the character of the response before which each stood, and its text.
    """
    if with_thinking and not with_special_tokens:
        return response
    text = _marked(response, special_tokens) if special_tokens else response
    if not with_thinking:
        text = without(text, prompt)
    if not special_tokens:
        return text
    return (text if with_special_tokens else _SPECIAL.sub("", text)).translate(_UNMARK)


def without(response: str, prompt: str = "") -> str:
    """What is no thought; nothing where thoughts never end.

    Thoughts run from an opening tag to the first closing one, and from the start where the prompt has opened them or a
    closing tag comes first. A tag in quotes, as in `print("</think>")`, or in a fenced block is text.
    """
    response = opened_by(prompt) + response
    if not _STARTS.search(response):  # nearly all are so, and verifiers of theirs may be cheap
        return response
    if _HARMONY.match(response):
        messages = _MESSAGE.finditer(response)
        return "\n".join(m["content"] for m in messages if m["channel"].translate(_UNMARK).strip() == _FINAL)
    if not any(tag in response for pair in THOUGHTS for tag in pair):
        return response
    text = fences.hidden(response) if "```" in response or "~~~" in response else response
    for opening, closing in THOUGHTS:
        if opening in text or closing in text:
            text = _without(text, opening, closing)
    return fences.shown(text)


def opened_by(prompt: str) -> str:
    """The opening tag that a prompt ends with; "" where there is none."""
    end = prompt[-_PROMPT_END:].rstrip()
    opened = _OPENED.search(end) if end.endswith(_ENDS) else None
    return opened[1] if opened else ""


def _marked(response: str, special_tokens: Sequence[tuple[int, str]]) -> str:
    """The response with its special tokens, each between marks."""
    pieces, position = [], 0
    for place, token in sorted(special_tokens, key=lambda special: special[0]):
        pieces += [response[position:place].translate(_UNMARK), _START, token.translate(_UNMARK), _END]
        position = max(position, place)
    return "".join([*pieces, response[position:].translate(_UNMARK)])


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
