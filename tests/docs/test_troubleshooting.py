"""Every message that the page on troubleshooting quotes is one that the code has."""

import re

import pytest

from tests.support.messages import ROOT, messages

PAGE = ROOT / "docs" / "how-to" / "troubleshooting.md"
# The first cell of a row.
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def known() -> str:
    """Every message on a line; what logging fills in is an ellipsis too."""
    return "\n".join(re.sub(r"%(?:\.\d)?[dsgf]", "…", text) for text in messages())


def test_the_page_quotes_some() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(QUOTED) == len(rows) > 30


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_code(message: str, known: str) -> None:
    assert message in known, "the message was changed; change the page"
