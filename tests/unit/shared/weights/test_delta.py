"""What changed between two files makes the later one of the earlier, byte for byte, or is not worth it."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from shared.errors import CorruptDataError
from shared.weights import delta

WORDS = 300_000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    np.random.default_rng(0).integers(0, 1 << 16, WORDS, dtype=np.uint16).tofile(path)
    return path


def changed(base: Path, indices: NDArray[np.int64]) -> Path:
    words = np.fromfile(base, np.uint16)
    words[indices] ^= 1
    path = base.with_name("new")
    words.tofile(path)
    return path


def spread(share: float) -> NDArray[np.int64]:
    return np.flatnonzero(np.random.default_rng(1).random(WORDS) < share)


@pytest.mark.parametrize("chunk", [1 << 24, 100_000, 4096])
@pytest.mark.parametrize(
    "indices",
    [
        np.arange(0),
        np.array([0]),
        np.array([WORDS - 1]),
        np.array([0, 65535, 131070]),
        np.array([0, 65536, 65537, 290_000]),
        np.array([65534, 65535, 262_143]),
        np.arange(500),
    ],
    ids=["nothing", "first", "last", "as far as a gap goes", "farther", "between", "neighbours"],
)
def test_a_file_is_made_of_the_one_before(
    base: Path, indices: NDArray[np.int64], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "_CHUNK", chunk)
    new, changes = changed(base, indices), base.with_name("changes")
    assert delta.write(base, new, changes)
    delta.apply(changes, base)
    assert base.read_bytes() == new.read_bytes()


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.2])
def test_a_change_takes_four_bytes(base: Path, share: float) -> None:
    indices = spread(share)
    new, changes = changed(base, indices), base.with_name("changes")
    assert delta.write(base, new, changes)
    assert 4 * len(indices) <= changes.stat().st_size < 4 * (len(indices) + WORDS / 65535) + 200
    delta.apply(changes, base)
    assert base.read_bytes() == new.read_bytes()


def test_what_changes_too_much_or_in_size_is_not_worth_it(base: Path) -> None:
    changes = base.with_name("changes")
    assert not delta.write(base, changed(base, spread(0.3)), changes)
    longer = base.with_name("longer")
    longer.write_bytes(base.read_bytes() + b"ab")
    assert not delta.write(base, longer, changes)
    odd, same = base.with_name("odd"), base.with_name("same")
    for path in (odd, same):
        path.write_bytes(base.read_bytes() + b"a")
    assert not delta.write(odd, same, changes)
    assert not changes.exists()


def test_what_is_no_delta_of_this_file_is_refused(base: Path) -> None:
    changes, before = base.with_name("changes"), base.read_bytes()
    changes.write_bytes(b"nothing")
    with pytest.raises(CorruptDataError, match="no delta of weights"):
        delta.apply(changes, base)
    one = np.zeros(1, np.uint16)
    for tensors in (
        {"gaps": one},
        {"gaps": one, "words": np.zeros(2, np.uint16)},
        {"gaps": one, "words": one.astype(int)},
    ):
        save_file(tensors, changes)
        with pytest.raises(CorruptDataError, match="uint16 gaps and words of one length"):
            delta.apply(changes, base)
    save_file({"gaps": np.full(9, 65535, np.uint16), "words": np.zeros(9, np.uint16)}, changes)
    with pytest.raises(CorruptDataError, match=f"word 589815 is to change, and there are {WORDS}"):
        delta.apply(changes, base)
    assert base.read_bytes() == before
