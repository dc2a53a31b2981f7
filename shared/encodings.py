"""Text that is not UTF-8: which encoding it seems to be in, and the command that converts it."""

import codecs
import shlex
from pathlib import Path

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def wide(start: bytes) -> str | None:
    """The encoding of text that begins with these bytes, where its characters take two or four; else None."""
    if marked := next((name for mark, name in _MARKS.items() if start.startswith(mark)), None):
        return marked
    if len(start) < 2 or start[0] == start[1] or 0 not in start[:2]:  # text of JSON and CSV begins with ASCII
        return None
    return "UTF-16BE" if start[0] == 0 else "UTF-16LE"


def conversion(path: Path, encoding: str) -> str:
    """What to do with a file, for the end of a message."""
    name = shlex.quote(str(path))
    if path.suffix == ".gz":
        return f"convert it: zcat {name} | iconv -f {encoding} -t UTF-8 | gzip > NEW.gz"
    return f"convert it: iconv -f {encoding} -t UTF-8 {name} > NEW"


def fix(path: Path, error: UnicodeDecodeError) -> str:
    """The same where bytes are not UTF-8, by what they seem to be."""
    high = [byte for byte in error.object if byte >= 0x80]
    guess = "WINDOWS-1252" if any(byte < 0xA0 for byte in high) else "ISO-8859-1"  # known as Latin-1
    return f"{conversion(path, guess)}, or -f what wrote it"
