"""The samples that a run keeps for people, in its folder: samples/step-NUMBER.bin, and an index beside each.

Those that could not be scored never reach the learner: each reward process keeps its own, in the same form, in
unscored/NAME.

The data file holds compressed samples, one after the other; the index has a line of JSON for each, with its summary and
where it lies. Both are only ever appended to, the index last: what the index names is whole. A table reads indexes
alone, and a sample is read by seeking. One process writes a folder; readers may come at any time.
"""

import json
import logging
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared.errors import CorruptDataError, NotFoundError
from shared.files import write_whole
from shared.tracking import records
from shared.tracking.sample import Sample, Summary

log = logging.getLogger(__name__)

FOLDER = "samples"
UNSCORED = "unscored"
_DATA, _INDEX = ".bin", ".jsonl"
_NAMED = 8  # steps that a message names one by one


class SampleWriter:
    """Appends samples to the files of their steps, and removes the oldest steps when the folder is full.

    The steps since a checkpoint are done again after a crash: of the samples that a step trained on, readers then take
    those of the newest writer.
    """

    def __init__(self, run: Path, max_bytes: int, process: str | None = None) -> None:
        """Opens nothing yet.

        Args:
            run: the run's folder.
            max_bytes: of all files of this writer.
            process: the name of a reward process, the same again after a restart; None for the learner.
        """
        self._folder = run / FOLDER if process is None else run / UNSCORED / re.sub(r"[^\w-]", "_", process)
        self._max_bytes = max_bytes
        self._writer = uuid.uuid4().hex[:8]
        self._sizes: dict[int, int] | None = None  # bytes by step; None until the folder was looked at

    def add(self, samples: Sequence[Sample]) -> int:
        """Adds samples of one step; gives how many there was room for: the others alone are above `max_bytes`.

        Raises:
            OSError: the disk refused; nothing of this call is in the files then.
        """
        if not samples:
            return 0
        step = samples[0].step
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._sizes is None:
            self._sizes = {found: _bytes_of(self._folder, found) for found in _steps(self._folder)}
        data_file = _file(self._folder, step, _DATA)
        begin = _size(data_file)
        data, lines = [], []
        room = self._max_bytes - self._sizes.get(step, 0)
        for sample in samples:
            encoded = sample.encode()
            place = {"writer": self._writer, "offset": begin, "length": len(encoded)}
            line = f"{records.dumps(sample.summary().record() | place)}\n".encode()
            room -= len(encoded) + len(line)
            if room < 0:
                break
            data.append(encoded)
            lines.append(line)
            begin += len(encoded)
        if data:
            self._append(step, b"".join(data), b"".join(lines))
        return len(data)

    def _append(self, step: int, data: bytes, lines: bytes) -> None:
        sizes: dict[int, int] = self._sizes or {}
        size = len(data) + len(lines)
        for oldest in sorted(sizes):
            if sum(sizes.values()) + size <= self._max_bytes:
                break
            if oldest != step:
                _remove(self._folder, oldest)
                del sizes[oldest]
        with _file(self._folder, step, _DATA).open("ab", buffering=0) as file:
            end = file.tell()
            write_whole(file, data, end)
            try:
                records.append_lines(_file(self._folder, step, _INDEX), lines)
            except OSError:
                file.truncate(end)
                raise
        sizes[step] = sizes.get(step, 0) + size


class _Place(NamedTuple):
    """Where a sample lies in the data file of its step."""

    folder: Path
    writer: str
    offset: int
    length: int


class Samples:
    """Reads the samples of a run. Files that are removed meanwhile count as not there."""

    def __init__(self, run: Path) -> None:
        """Args: run: the run's folder."""
        self.folder = run / FOLDER
        self._unscored = run / UNSCORED

    def steps(self) -> list[int]:
        """Those that have samples, in their order."""
        return sorted({step for folder in self._folders() for step in _steps(folder)})

    def index_bytes(self, step: int) -> int:
        """Size of a step's index, which grows with every sample of the step; 0 where there is none."""
        return sum(_size(_file(folder, step, _INDEX)) for folder in self._folders())

    def summaries(self, step: int | None = None) -> list[Summary]:
        """All summaries of a step, or of every step in their order; none for a step without samples."""
        return [summary for each in ([step] if step is not None else self.steps()) for summary in self._index(each)]

    def require(self, step: int) -> None:
        """Raises NotFoundError for a step without samples; names those that have some."""
        self._required(step)

    def read(self, step: int, trajectory: str) -> Sample:
        """One sample; see `Summary` for its name.

        Raises:
            NotFoundError: no such step or sample; names what there is.
            CorruptDataError: its data is torn.
        """
        places = {summary.trajectory: place for summary, place in self._required(step).items()}
        if trajectory not in places:
            raise NotFoundError(f"step {step} has no sample {trajectory!r}; it has {', '.join(places)}")
        place = places[trajectory]
        path = _file(place.folder, step, _DATA)
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                data = file.read(place.length)
        except FileNotFoundError:
            raise NotFoundError(f"{path} is gone: newer samples took its room") from None
        try:
            return Sample.decode(data)
        except CorruptDataError as error:
            raise CorruptDataError(f"sample {trajectory} at byte {place.offset} of {path}: {error}") from None

    def _folders(self) -> list[Path]:
        """Every writer's."""
        processes = self._unscored.iterdir() if self._unscored.is_dir() else ()
        return [self.folder, *sorted(processes)]

    def _required(self, step: int) -> dict[Summary, _Place]:
        index = self._index(step)
        if not index:
            raise NotFoundError(f"step {step} has no samples in {self.folder}; {_named(self.steps())}")
        return index

    def _index(self, step: int) -> dict[Summary, _Place]:
        """The last line of each trajectory; of those trained on only what the newest writer did."""
        found: dict[str, tuple[Summary, _Place]] = {}
        trainer = ""
        for summary, place in (line for folder in self._folders() for line in _lines(folder, step)):
            if summary.is_trained and place.writer != trainer:
                found = {name: line for name, line in found.items() if not line[0].is_trained}
                trainer = place.writer
            found[summary.trajectory] = summary, place
        return dict(found.values())


def _lines(folder: Path, step: int) -> Iterator[tuple[Summary, _Place]]:
    path = _file(folder, step, _INDEX)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            record: dict[str, Any] = json.loads(line)
            yield Summary.of(record), _Place(folder, record["writer"], record["offset"], record["length"])
        except (ValueError, TypeError, KeyError) as error:  # a machine lost its power while this was written
            log.warning("%s: a line is no summary of a sample (%s: %s); left out", path, type(error).__name__, error)


def _file(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"step-{step:08d}{suffix}"


def _steps(folder: Path) -> list[int]:
    names = (path.stem.removeprefix("step-") for path in folder.glob(f"step-*{_INDEX}"))
    return sorted(int(name) for name in names if name.isdecimal())


def _size(path: Path) -> int:
    """In bytes; 0 where it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _bytes_of(folder: Path, step: int) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"step-{step:08d}.*"))


def _remove(folder: Path, step: int) -> None:
    """The index first: without it nobody looks for the data."""
    for suffix in (_INDEX, _DATA):
        _file(folder, step, suffix).unlink(missing_ok=True)


def _named(steps: Sequence[int]) -> str:
    """What there is, in words."""
    if not steps:
        return "no step has any"
    if len(steps) > _NAMED:
        return f"there are {len(steps)} steps with samples, {steps[0]} to {steps[-1]}"
    return f"steps with samples: {', '.join(map(str, steps))}"
