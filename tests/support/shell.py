"""The commands of a page, as a shell would take them apart."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

_BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_OPERATORS = "|;&()<>"


def texts_of(page: Path, *languages: str) -> list[str]:
    """The fenced blocks in one of these languages, those in lists among them."""
    return [text for _, language, text in _BLOCK.findall(page.read_text()) if language in languages]


def shell(page: Path) -> str:
    """What a reader of a page types, a command a line; of a console without what it prints."""
    typed = [re.sub(r"\\\n\s*", "", text) for text in texts_of(page, "sh", "bash")]
    shown = [re.sub(r"\\\n\s*", "", text) for text in texts_of(page, "console")]
    return "\n".join([*typed, *(line for text in shown for line in re.findall(r"(?m)^\$ (.*)$", text))])


def called(text: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of a program, without the brackets around what may be left out."""
    line = ""
    for more in text.splitlines():
        line = f"{line}\n{more}" if line else more
        lexer = shlex.shlex(line, posix=True, punctuation_chars=_OPERATORS)
        lexer.whitespace_split = True
        try:
            words = [*lexer, ";"]
        except ValueError:  # a quotation goes on in the next line
            continue
        line = ""
        yield from _calls(words, program)


def _calls(words: list[str], program: str) -> Iterator[list[str]]:
    arguments: list[str] | None = None
    before = ";"
    for word in words:
        if not word.strip(_OPERATORS):  # the end of a command
            if arguments is not None:
                yield arguments[:-1] if word.startswith(">") and before.isdigit() else arguments  # 2>&1
            arguments = None
        elif arguments is not None:
            arguments.append(word.strip("[]"))
        elif word.rpartition("/")[2] == program and re.fullmatch(r"[|;&()<>]+|\w+=.*|--no-python", before):
            arguments = []
        before = word
