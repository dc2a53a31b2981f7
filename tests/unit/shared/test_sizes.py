"""Bytes in words."""

import pytest

from shared.sizes import in_words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (100 << 20, "100.00 MiB"),
        (3 << 30, "3.00 GiB"),
        (5 << 40, "5.00 TiB"),
        (5 << 50, "5120.00 TiB"),
    ],
)
def test_the_largest_unit_of_which_there_is_a_whole_one(count: int, words: str) -> None:
    assert in_words(count) == words
