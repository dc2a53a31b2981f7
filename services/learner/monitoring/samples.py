"""The samples that a learner keeps for people: chosen here, and written by a thread that nobody waits for."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import Full, Queue

import numpy as np
from tokenizers import Tokenizer

from services.learner import metrics
from services.learner.data.messages import Scored, whole_message
from services.learner.monitoring.kept import TrainedTokens
from services.learner.monitoring.report import StepReport
from services.learner.settings import Settings
from shared.errors import UnavailableError
from shared.models.detokenizer import pieces, text
from shared.models.tokenizer import read_tokenizer
from shared.payloads.bulk import Bulk, PayloadError
from shared.settings import RunSettings
from shared.streams.consumer import parse_group
from shared.tracking.recorded import recorded_samples
from shared.tracking.sample import TRAINED, Sample
from shared.tracking.samples import SampleWriter

log = logging.getLogger(__name__)

_MOST_WAITING = 8  # steps; what a disk that is slower for longer does not get is counted
_CLOSE_SECONDS = 10.0

# Of a group's samples by their index, what training knows of them.
_Known = Mapping[int, TrainedTokens]


@dataclass(frozen=True, slots=True)
class _Job:
    """Groups of one step that came to the same end."""

    step: int
    outcome: str
    groups: Sequence[tuple[Scored, _Known]]

    @property
    def samples(self) -> int:
        return sum(len(scored.group.samples) for scored, _ in self.groups)


class SampleKeeper:
    """Keeps some groups of each step, with what the trainer reports of their tokens, and some of those it dropped."""

    def __init__(self, settings: Settings, bulk: Bulk | None = None) -> None:
        """Args: bulk: the payload store, where groups have their arrays there."""
        self._bulk = bulk
        self._settings = settings.learner.samples
        self._run = settings.run
        self._dropped: Counter[tuple[int, str]] = Counter()  # groups by step and reason
        self._writer = _Writer(settings.run, self._settings.max_bytes) if self._settings.are_kept else None

    def choose(self, step: int, groups: int) -> list[int]:
        """Which groups of a step to keep, by their indices: at random, the same again where a step is done again."""
        count = min(self._settings.groups, groups)
        order = np.random.default_rng((self._run.seed, step)).permutation(groups)
        return sorted(order[:count].tolist())

    def add(self, batch: Sequence[Scored], report: StepReport) -> None:
        """Keeps what `choose` chose of a batch that was trained on, or skipped; before its entries are settled."""
        known: dict[int, dict[int, TrainedTokens]] = {}
        for (group, sample), tokens in report.kept.items():
            known.setdefault(group, {})[sample] = tokens
        if self._writer and known:
            groups = [(self._whole(batch[i]), known[i]) for i in sorted(known)]
            step = report.step + 1 if report.skipped else report.step
            self._writer.put(_Job(step, report.skipped or TRAINED, groups))

    def drop(self, scored: Scored, reason: str, step: int) -> None:
        """Keeps the first groups that are dropped for a reason while a step is collected."""
        if self._writer is None or self._dropped[step, reason] >= self._settings.dropped:
            return
        self._dropped = Counter({key: count for key, count in self._dropped.items() if key[0] == step})
        self._dropped[step, reason] += 1
        self._writer.put(_Job(step, reason, [(self._whole(scored), {})]))

    def _whole(self, scored: Scored) -> Scored:
        """With its arrays, which are deleted with the end of the group; without tokens where they cannot be had."""
        if not scored.entry.reference:
            return scored
        try:
            message = whole_message(scored.entry, self._bulk)
        except (PayloadError, UnavailableError) as error:
            log.warning("samples of group %s are kept without tokens: %s", scored.entry.group, error)
            return scored
        return replace(scored, entry=replace(scored.entry, payload=message.SerializeToString()))

    def close(self) -> None:
        """Gives the thread some seconds to write what it has."""
        if self._writer:
            self._writer.close()


class _Writer:
    """The thread. Whatever it cannot write is counted, and logged once until it can again."""

    def __init__(self, run: RunSettings, max_bytes: int) -> None:
        self._run = run
        self._files = SampleWriter(run.path, max_bytes)
        self._tokenizer: Tokenizer | None = None
        self._has_tokenizer = False
        self._fails = False
        self._waiting: Queue[_Job | None] = Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="samples", daemon=True)
        self._thread.start()

    def put(self, job: _Job) -> None:
        try:
            self._waiting.put_nowait(job)
        except Full:
            self._lost("behind", job.samples, f"{_MOST_WAITING} steps wait to be written")

    def close(self) -> None:
        try:
            self._waiting.put(None, timeout=_CLOSE_SECONDS)
        except Full:
            pass
        else:
            self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.error("samples: the disk did not take the last ones within %g s", _CLOSE_SECONDS)

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            self._write(job)
            del job  # its groups are let go while nothing comes

    def _write(self, job: _Job) -> None:
        try:
            if not self._has_tokenizer:
                self._tokenizer = read_tokenizer(self._run.model_folder(weights=False))
                self._has_tokenizer = True
            samples = [
                sample
                for scored, known in job.groups
                for sample in samples_of(scored, known, job.step, job.outcome, self._tokenizer)
            ]
            written = self._files.add(samples)
        except OSError as error:
            metrics.REFUSED_WRITES.labels("samples").inc()
            self._lost("refused", job.samples, f"{error.filename}: {error.strerror}")
        except Exception as error:  # such as a tokenizer that is broken: nobody learns from samples but people
            self._lost("failed", job.samples, f"{type(error).__name__}: {error}")
        else:
            metrics.SAMPLES.labels("kept").inc(written)
            if left := job.samples - written:
                reason = f"step {job.step} alone is above learner.samples.max_bytes; raise it, or keep fewer groups"
                self._lost("no_room", left, reason)
            else:
                self._fails = False

    def _lost(self, outcome: str, samples: int, reason: str) -> None:
        metrics.SAMPLES.labels(outcome).inc(samples)
        if not self._fails:
            log.error("%d samples not kept: %s", samples, reason)
        self._fails = True


def samples_of(scored: Scored, known: _Known, step: int, outcome: str, tokenizer: Tokenizer | None) -> list[Sample]:
    """A group's samples, with texts that generation left out, and with what training knows where it does."""
    message = parse_group(scored.entry)
    found = recorded_samples(message, scored.entry.group, step, outcome, partial(pieces, tokenizer))
    prompt = message.prompt.text or text(tokenizer, list(message.prompt.token_ids))
    return [
        _with_training(
            replace(sample, prompt=prompt, response=sample.response or text(tokenizer, _last_said(sample))),
            known.get(i),
        )
        for i, sample in enumerate(found)
    ]


def _last_said(sample: Sample) -> list[int]:
    """The token ids of the last sampled segment."""
    ids: list[int] = sample.tokens.ids.tolist()
    last = next((each.tokens for each in reversed(sample.segments) if each.is_sampled), len(ids))
    return ids[-last:]


def _with_training(sample: Sample, trained: TrainedTokens | None) -> Sample:
    if trained is None:
        return sample
    tokens = replace(
        sample.tokens,
        trained_logprobs=trained.logprobs,
        entropy=trained.entropy,
        clipped=trained.clipped,
        log_gamma=trained.log_gamma,
        drift=trained.drift,
    )
    return replace(sample, tokens=tokens, advantage=trained.advantage)
