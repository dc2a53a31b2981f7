"""A traceparent may be anything: what is none costs its trace, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.streams.entries import Entry, EntryRef
from shared.tracing.context import sampled

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (GOOD, GOOD),
        (GOOD.encode(), GOOD),
        (f"00-{TRACE}-{SPAN}-03", f"00-{TRACE}-{SPAN}-03"),  # a flag that came with level 2
        (f"cc-{TRACE}-{SPAN}-01-what-a-later-version-adds", f"cc-{TRACE}-{SPAN}-01"),
        (f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01"),
    ],
)
def test_one_that_is_sampled_is_read(text: str | bytes, read: str) -> None:
    assert sampled(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        b"",
        f"00-{TRACE}-{SPAN}-00",  # its sender records nothing
        f"00-{TRACE}-{SPAN}-01-more",  # version 00 has no more
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        GOOD.upper(),
        f" {GOOD}",
        f"{GOOD}\n",
        f"cc-{TRACE}-{SPAN}-01-\r\nheader: value",
        GOOD[:-1],
        GOOD.replace("-", "_"),
        GOOD.replace("4", "\N{ARABIC-INDIC DIGIT FOUR}"),
        GOOD.replace("4", "\N{ARABIC-INDIC DIGIT FOUR}").encode(),
        b"\xff\xfe" * 20,
        b"\x00" * 55,
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 10_000_000,
        "-" * 10_000_000,
        b"0" * 10_000_000,
    ],
    ids=lambda text: repr(text[:60]),
)
def test_garbage_is_none(text: str | bytes) -> None:
    assert sampled(text) == ""


@given(st.binary(max_size=80) | st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-.*"))
def test_whatever_is_read_can_be_sent_on(text: str | bytes) -> None:
    read = sampled(text)
    assert read == "" or (len(read) == 55 and read.isascii() and sampled(read) == read)


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 55, b"00-zz", GOOD.encode()[:-1]])
def test_an_entry_with_garbage_is_an_entry_without_a_trace(garbage: bytes) -> None:
    fields = {b"g": b"00000000/0", b"n": b"4", b"p": b"payload"}
    plain, hostile = (Entry.of(b"1-0", each, 1) for each in (fields, fields | {b"t": garbage}))
    assert hostile == plain
    assert EntryRef.of(b"1-0", fields | {b"t": garbage}) == plain.ref
    assert Entry.of(b"1-0", fields | {b"t": GOOD.encode()}, 1).ref.traceparent == GOOD
