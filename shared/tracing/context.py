"""What carries a trace from one process to the next: a W3C traceparent, in stream entries and in gRPC metadata."""

import re

HEADER = "traceparent"

# Version, trace id, span id and flags, as in https://www.w3.org/TR/trace-context/; version ff and ids of zeros are
# invalid. A later version may have more fields, which are left unread.
_FORM = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?", re.ASCII)
_LENGTH = 55  # of the fields that are read
_LONGEST = 512
_SAMPLED = 1


def sampled(text: str | bytes) -> str:
    """The traceparent, if it is well-formed and its trace is recorded; '' otherwise.

    Whatever somebody wrote into a stream or sent as metadata costs at most its trace.
    """
    if len(text) > _LONGEST:
        return ""
    if isinstance(text, bytes):
        text = text.decode("ascii", errors="replace")
    match = _FORM.fullmatch(text)
    if match is None or (match[1] == "00" and match[3]) or not int(match[2], 16) & _SAMPLED:
        return ""
    return text[:_LENGTH]
