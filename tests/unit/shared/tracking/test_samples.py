"""The samples of a run on disk: read as they were written, torn, rotated, capped, and on a disk that is full."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from routershift.trajectory import Role, Segment
from shared.errors import CorruptDataError, NotFoundError
from shared.tracking.sample import Sample, Tokens
from shared.tracking.samples import Samples, SampleWriter
from tests.support.samples import dropped, sample, tokens

PLENTY = 1 << 30
# Writes two samples, and a third where the index or the data may not grow by a whole one.
WRITER = """
import resource, signal, sys
from pathlib import Path
from shared.tracking.samples import Samples, SampleWriter
from tests.support.samples import sample
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run, suffix = Path(sys.argv[1]), sys.argv[2]
writer = SampleWriter(run, 1 << 30)
writer.add([sample(1, "0/0/0"), sample(1, "0/0/1")])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
room = (run / "samples" / f"step-00000001{suffix}").stat().st_size + 10
resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
try:
    writer.add([sample(1, "1/0/0")] * 20)
except OSError as error:
    print("refused")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.add([sample(1, "2/0/0")])
"""

halves = st.floats(-30, 0, width=32)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def any_samples(draw: st.DrawFn) -> Sample:
    count, layers = draw(st.integers(0, 6)), draw(st.integers(1, 3))
    column = hnp.arrays(np.float32, count, elements=halves)
    drift = hnp.arrays(np.float32, (count, layers), elements=st.one_of(st.floats(0, 15, width=32), st.just(np.nan)))
    return Sample(
        step=draw(st.integers(1, 10**9)),
        trajectory=draw(names),
        prompt=draw(names),
        problem=draw(names),
        response=draw(names),
        outcome=draw(st.sampled_from(["trained", "stale", "zero_variance"])),
        reward=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        verifier=draw(names),
        tokens=Tokens(
            ids=draw(hnp.arrays(np.int32, count)),
            pieces=tuple(draw(st.lists(names, min_size=count, max_size=count))),
            versions=draw(hnp.arrays(np.int64, count, elements=st.integers(0, 2**40))),
            logprobs=draw(column),
            trained_logprobs=draw(st.none() | column),
            entropy=draw(st.none() | column),
            clipped=draw(st.none() | hnp.arrays(np.bool_, count)),
            log_gamma=draw(st.none() | column),
            drift=draw(st.none() | drift),
        ),
        parts=draw(st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=3)),
        message=draw(names),
        advantage=draw(st.none() | st.floats(-5, 5)),
        layers=tuple(range(layers)),
        segments=tuple(draw(st.lists(st.builds(Segment, st.sampled_from(Role), st.integers(1), st.booleans(), names)))),
    )


@given(any_samples())
@settings(deadline=None)
def test_a_sample_is_read_as_it_was_written_but_for_rounding(written: Sample) -> None:
    read = Sample.decode(written.encode())
    assert replace(read, tokens=written.tokens) == written
    for field in fields(Tokens):
        was, found = getattr(written.tokens, field.name), getattr(read.tokens, field.name)
        if was is None or isinstance(was, tuple):
            assert found == was
            continue
        assert found.dtype == was.dtype
        assert found.shape == was.shape
        if field.name == "drift":  # the codes of score_code, and the rounding of their values to float16
            assert (np.isnan(found) == np.isnan(was)).all()
            bound = (np.sqrt(np.nan_to_num(was)) + 1 / 256) / 64 + np.nan_to_num(was) / 1024
            assert (np.abs(np.nan_to_num(found) - np.nan_to_num(was)) <= bound + 1e-6).all()
        else:
            np.testing.assert_allclose(found, was, rtol=2**-10, atol=1e-7)


@given(any_samples())
@settings(deadline=None)
def test_what_is_shown_is_json(written: Sample) -> None:
    summary = written.summary()
    assert type(summary).of(json.loads(json.dumps(summary.record()))) == summary
    assert set(written.record()["tokens"]) >= {"pieces", "gamma", "log_ratio", "drift", "versions"}


@given(any_samples(), st.data())
@settings(deadline=None)
def test_torn_bytes_are_no_sample(written: Sample, data: st.DataObject) -> None:
    whole = written.encode()
    with pytest.raises(CorruptDataError, match="are no sample"):
        Sample.decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_a_step_is_added_to_and_read_one_sample_at_a_time(tmp_path: Path) -> None:
    writer, reader = SampleWriter(tmp_path, PLENTY), Samples(tmp_path)
    assert reader.steps() == []
    assert reader.summaries() == []
    assert writer.add([dropped(3, "0/0/0"), dropped(3, "0/0/1", "stale")]) == 2
    assert writer.add([sample(3, "1/0/0", response="é\u2028" * 500)]) == 1
    writer.add([sample(12, "1/0/1")])
    assert reader.steps() == [3, 12]
    found = reader.summaries(3)
    assert [(s.trajectory, s.group, s.prompt_id, s.outcome) for s in found] == [
        ("0/0/0", "0/0", "0", "zero_variance"),
        ("0/0/1", "0/0", "0", "stale"),
        ("1/0/0", "1/0", "1", "trained"),
    ]
    assert [summary.step for summary in reader.summaries()] == [3, 3, 3, 12]
    assert found[0].gamma_mean is None
    assert found[2].gamma_min is not None
    assert len(found[2].response) < 200
    assert reader.read(3, "1/0/0").response == "é\u2028" * 500
    assert reader.read(3, "0/0/1").tokens.trained_logprobs is None


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    reader = Samples(tmp_path)
    with pytest.raises(NotFoundError, match="no step has any"):
        reader.read(1, "0/0/0")
    writer = SampleWriter(tmp_path, PLENTY)
    for step in (2, 4):
        writer.add([sample(step, "0/0/0")])
    with pytest.raises(NotFoundError, match="steps with samples: 2, 4"):
        reader.read(3, "0/0/0")
    with pytest.raises(NotFoundError, match="step 4 has no sample '0/0/9'; it has 0/0/0"):
        reader.read(4, "0/0/9")
    for step in range(5, 15):
        writer.add([sample(step, "0/0/0")])
    with pytest.raises(NotFoundError, match="12 steps with samples, 2 to 14"):
        reader.read(1, "0/0/0")


def test_a_step_done_again_after_a_crash_stands_in_for_the_first(tmp_path: Path) -> None:
    first, second = SampleWriter(tmp_path, PLENTY), SampleWriter(tmp_path, PLENTY)
    first.add([dropped(1, "0/0/0")])
    first.add([sample(1, "1/0/0"), sample(1, "2/0/0")])
    second.add([dropped(1, "0/0/0", "stale")])
    second.add([sample(1, "2/0/0", reward=0.25), sample(1, "3/0/0")])
    found = {summary.trajectory: summary for summary in Samples(tmp_path).summaries(1)}
    assert sorted(found) == ["0/0/0", "2/0/0", "3/0/0"]
    assert found["0/0/0"].outcome == "stale"
    assert Samples(tmp_path).read(1, "2/0/0").reward == 0.25


def test_each_process_writes_files_of_its_own_and_all_are_read(tmp_path: Path) -> None:
    cap = 1 << 20
    learner = SampleWriter(tmp_path, cap)
    first, second = (SampleWriter(tmp_path, cap, process) for process in ("host/1", "host.2"))
    first.add([dropped(2, "0/0/0", "verifier_failed", message="one")])
    learner.add([sample(2, "1/0/0")])
    second.add([dropped(2, "2/0/0", "verifier_failed"), dropped(2, "2/0/1", "verifier_failed")])
    first.add([dropped(3, "3/0/0", "verifier_refused")])
    reader = Samples(tmp_path)
    assert reader.steps() == [2, 3]
    assert sorted(s.trajectory for s in reader.summaries(2)) == ["0/0/0", "1/0/0", "2/0/0", "2/0/1"]
    assert reader.read(2, "0/0/0").message == "one"
    assert reader.read(3, "3/0/0").outcome == "verifier_refused"
    assert sorted(path.name for path in (tmp_path / "unscored").iterdir()) == ["host_1", "host_2"]
    before = reader.index_bytes(2)
    second.add([dropped(2, "2/0/2", "verifier_failed")])
    assert reader.index_bytes(2) > before > 0 == reader.index_bytes(9)


def test_torn_files_hide_nothing_but_what_is_torn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SampleWriter(tmp_path, PLENTY).add([sample(1, "0/0/0"), sample(1, "0/0/1")])
    data, index = (tmp_path / "samples" / f"step-00000001{suffix}" for suffix in (".bin", ".jsonl"))
    with index.open("ab") as file:
        file.write(b'\x00\x00\n{"step": 1}\n{"step": 1, "traj')  # a power cut, another program, a kill
    data.write_bytes(data.read_bytes()[:-10])
    reader = Samples(tmp_path)
    assert [summary.trajectory for summary in reader.summaries()] == ["0/0/0", "0/0/1"]
    assert sum("left out" in line for line in caplog.messages) == 2
    assert reader.read(1, "0/0/0").reward == 1.0
    with pytest.raises(CorruptDataError, match=r"sample 0/0/1 at byte \d+ of .*step-00000001.bin"):
        reader.read(1, "0/0/1")
    SampleWriter(tmp_path, PLENTY).add([dropped(1, "1/0/0")])  # what was half written is cut off
    assert [summary.trajectory for summary in reader.summaries()] == ["0/0/0", "0/0/1", "1/0/0"]
    assert reader.read(1, "1/0/0").outcome == "zero_variance"


def test_the_oldest_steps_make_room(tmp_path: Path) -> None:
    SampleWriter(tmp_path, PLENTY).add([sample(1, "0/0/0")])
    one = size(tmp_path)
    writer = SampleWriter(tmp_path, 4 * one)  # a writer counts what it finds
    for step in range(2, 9):
        writer.add([sample(step, "0/0/0")])
        assert size(tmp_path) <= 4 * one
    steps = Samples(tmp_path).steps()
    assert len(steps) >= 3
    assert steps[-1] == 8
    assert {path.stem for path in (tmp_path / "samples").iterdir()} == {f"step-{step:08d}" for step in steps}


def test_a_step_above_the_cap_keeps_its_first_samples(tmp_path: Path) -> None:
    SampleWriter(tmp_path, PLENTY).add([sample(1, "0/0/0")])
    cap = int(2.5 * size(tmp_path))
    writer = SampleWriter(tmp_path, cap)
    assert writer.add([sample(2, f"0/0/{i}") for i in range(5)]) == 2
    assert writer.add([sample(2, "1/0/0")]) == 0  # its own step is not taken apart for it
    assert writer.add([sample(3, "0/0/0", tokens=tokens(100_000))]) == 0
    assert [s.trajectory for s in Samples(tmp_path).summaries(2)] == ["0/0/0", "0/0/1"]
    assert size(tmp_path) <= cap


@pytest.mark.parametrize("suffix", [".bin", ".jsonl"])
def test_a_full_disk_takes_all_or_nothing(tmp_path: Path, suffix: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, tmp_path, suffix], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout.split() == ["refused"]
    reader = Samples(tmp_path)
    assert [summary.trajectory for summary in reader.summaries()] == ["0/0/0", "0/0/1", "2/0/0"]
    assert reader.read(1, "2/0/0").reward == 1.0


def size(run: Path) -> int:
    return sum(path.stat().st_size for path in (run / "samples").iterdir())
