"""How the rows of a decoding step are divided."""

from services.generation.engines.torch.attention import blocks_of


def test_rows_attend_in_blocks_where_that_spares_reading() -> None:
    assert blocks_of([2048] * 96) == []
    assert blocks_of([40] * 60 + [60] * 68) == [], "so short that calls cost more"
    blocks = blocks_of([300, 200, 100, 250, 2048, 20, 20, 20, 100, 90])
    assert [(block.first, block.end, block.positions) for block in blocks] == [(0, 4, 300), (4, 8, 2048), (8, 10, 100)]
