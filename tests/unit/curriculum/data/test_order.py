"""The order of training rows: whole epochs, exact shares, and nothing but seed and index behind them."""

from collections import Counter

import pytest

from services.curriculum.data.order import Order, Share


def rows(order: Order, start: int, stop: int) -> list[int]:
    return [order.row(index) for index in range(start, stop)]


def test_every_epoch_has_every_row_as_often_as_it_repeats() -> None:
    order = Order([Share(5, 1, None), Share(3, 2, None)], seed=1)
    assert order.epoch_size == 11
    first, second = rows(order, 0, 11), rows(order, 11, 22)
    expected = Counter({**dict.fromkeys(range(5), 1), **dict.fromkeys(range(5, 8), 2)})
    assert Counter(first) == Counter(second) == expected
    assert first != second


def test_an_index_has_its_row_whatever_was_asked_before() -> None:
    for shares in ([Share(40, 1, None), Share(7, 3, None)], [Share(40, 1, 3.0), Share(7, 3, 1.0)]):
        whole = rows(Order(shares, seed=4), 0, 2500)
        assert [Order(shares, seed=4).row(index) for index in (0, 1, 999, 1000, 2499)] == [
            whole[index] for index in (0, 1, 999, 1000, 2499)
        ]
        assert whole != rows(Order(shares, seed=5), 0, 2500)


def test_weights_are_exact_in_every_block_and_each_source_has_its_own_epochs() -> None:
    order = Order([Share(100, 1, 3.0), Share(10, 2, 1.0), Share(4, 1, 1e-6)], seed=0)
    for start in (0, 1000, 5000):
        drawn = rows(order, start, start + 1000)
        counts = [sum(low <= row < high for row in drawn) for low, high in ((0, 100), (100, 110), (110, 114))]
        assert counts[2] == 1
        assert counts[0] == pytest.approx(750, abs=2)
        assert counts[1] == pytest.approx(250, abs=2)
    small = [row for row in rows(order, 0, 2000) if 100 <= row < 110]
    assert Counter(small[:20]) == Counter(dict.fromkeys(range(100, 110), 2))
    large = [row for row in rows(order, 0, 1000) if row < 100]
    assert set(large[:100]) == set(range(100))


def test_an_epoch_by_weight_lasts_until_the_slowest_source_is_through() -> None:
    order = Order([Share(100, 1, 1.0), Share(10, 1, 1.0)], seed=0)
    assert order.epoch_size == 200
