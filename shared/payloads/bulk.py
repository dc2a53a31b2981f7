"""The arrays of groups on their way: written before an entry refers to them, read, and deleted with its end.

A store that is full is waited for, as a stream is: those who empty it go on. One that cannot be had is tried again for
`payloads.outage_seconds`.
"""

import asyncio
import contextlib
import errno
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import ClassVar, TypeVar

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError, PreconditionError, UnavailableError
from shared.payloads import metrics
from shared.payloads.arrays import attach_all, detach
from shared.payloads.settings import PayloadSettings
from shared.payloads.store import MARKER, PayloadStore, check_key, new_key, source_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PAUSE_SECONDS = 0.5
_REMIND_SECONDS = 60.0


class PayloadError(CorruptDataError):
    """Arrays of a group are not what was written: its entry goes to the dead letters."""

    reason: ClassVar[str]  # of the dead letter


class PayloadLostError(PayloadError):
    """The object is gone, in whole or in part."""

    reason = "payload_lost"


class PayloadCorruptError(PayloadError):
    """The object has other bytes."""

    reason = "payload_corrupt"


class Bulk:
    """Writes, reads and deletes the arrays of groups in a payload store."""

    def __init__(self, store: PayloadStore, settings: PayloadSettings) -> None:
        self._store = store
        self._settings = settings
        self._said_full = -math.inf

    @property
    def store(self) -> PayloadStore:
        """Where they are."""
        return self._store

    async def open(self, refers: Callable[[], Awaitable[int]]) -> None:
        """Makes sure that this is the store of the run, and that this service may write there.

        Args:
            refers: how many objects entries of the run refer to.

        Raises:
            PreconditionError: it cannot be written to, or does not have what entries refer to.
        """
        try:
            known = await asyncio.to_thread(self._is_marked)
            if not known and (lost := await refers()):
                raise PreconditionError(
                    f"{self._store} has none of the {lost} payloads that entries refer to: it is another place than "
                    "before, or not mounted; bring it back"
                )
            await asyncio.to_thread(self._try, known)
        except OSError as error:
            raise PreconditionError(
                f"{self._store} cannot be written to: {_text(error)}; every service "
                "that writes or reads arrays needs it"
            ) from None

    async def put(
        self, stream: str, entry: str, group: pb.TrajectoryGroup, full: Callable[[int], Awaitable[object]]
    ) -> tuple[bytes, str]:
        """Writes the arrays of a group under a key of its own, however often the group is played.

        Args:
            stream: that the group's prompt came from.
            entry: of the prompt. While it is there, the object is kept: see `sweep`.
            full: is told the bytes that find no room, before each pause.

        Returns:
            The message without the arrays, serialized, and the key.

        Raises:
            UnavailableError: the store cannot be had for `outage_seconds`.
        """
        began = time.perf_counter()
        key = new_key(stream, entry)
        envelope, parts = await asyncio.to_thread(detach, group, key)
        size = sum(map(len, parts))
        failing: float | None = None
        while True:
            try:
                await asyncio.to_thread(self._store.put, key, parts)
                break
            except OSError as error:
                if error.errno in _FULL:
                    failing = None
                    self._say_full(error)
                    await full(size)
                else:
                    failing = self._failed(error, failing)
            await asyncio.sleep(_PAUSE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311  # jitter
        metrics.OBJECTS.labels("written").inc()
        metrics.BYTES.labels("written").inc(size)
        metrics.SECONDS.labels("written").observe(time.perf_counter() - began)
        return envelope.SerializeToString(), key

    async def delete(self, key: str, event: str = "deleted") -> None:
        """Deletes an object that no entry refers to any more. What cannot be deleted now is left to the sweep.

        Args:
            event: of the metric: deleted, discarded or swept.
        """
        if source_of(key) is None:  # a path, or whatever else: no object of ours
            log.error("an entry named the payload %r, which is no key", key)
            return
        try:
            await asyncio.to_thread(self._store.delete, key)
        except OSError as error:
            metrics.FAILURES.labels("unavailable").inc()
            log.warning("payload %s is left to the sweep: %s: %s", key, self._store, _text(error))
        else:
            metrics.OBJECTS.labels(event).inc()

    def attach(self, group: pb.TrajectoryGroup, key: str) -> None:
        """Puts the arrays of a group back, in place; in a thread, as it waits for the store.

        Args:
            key: that the group's entry names; '' where it names none.

        Raises:
            PayloadLostError, PayloadCorruptError: they are not what was written.
            UnavailableError: the store cannot be had for `outage_seconds`.
        """
        began, size = time.perf_counter(), 0

        def read(reference: pb.PayloadReference) -> bytes:
            nonlocal size
            if reference.key != key:
                raise CorruptDataError(f"payload.key is {reference.key!r}; the entry names {key!r}")
            size += reference.size_bytes
            return self.read(reference)

        try:
            attach_all(group, read)
        except PayloadLostError:
            metrics.FAILURES.labels("lost").inc()
            raise
        except CorruptDataError as error:
            metrics.FAILURES.labels("corrupt").inc()
            raise PayloadCorruptError(str(error)) from None
        if size:
            metrics.BYTES.labels("read").inc(size)
            metrics.SECONDS.labels("read").observe(time.perf_counter() - began)

    def read(self, reference: pb.PayloadReference) -> bytes:
        """What a reference names, not yet checked against its checksum; in a thread.

        Raises:
            CorruptDataError: its key is none.
            PayloadLostError: there is no such object, or it ends before.
            UnavailableError: the store cannot be had for `outage_seconds`.
        """
        key, failing = check_key(reference.key), None
        while True:
            try:
                part = self._store.get(key, reference.offset, reference.size_bytes)
                break
            except FileNotFoundError:
                if self._marked_or_unknown():
                    raise PayloadLostError(f"payload {key} is not in {self._store}; it was deleted") from None
                failing = self._failed(FileNotFoundError(errno.ENOENT, "it is not mounted, or another place"), failing)
            except OSError as error:
                failing = self._failed(error, failing)
            time.sleep(_PAUSE_SECONDS)
        if len(part) < reference.size_bytes:
            end = reference.offset + len(part)
            expected = reference.offset + reference.size_bytes
            raise PayloadLostError(f"payload {key} ends at byte {end}; expected {expected}")
        return part

    def _try(self, known: bool) -> None:
        probe = new_key("probe", "0-0")
        self._store.put(probe, [b"x"])
        self._store.delete(probe)
        if not known:
            with contextlib.suppress(FileNotFoundError):  # another service has renamed the same file meanwhile
                self._store.put(MARKER, [b"payloads of a run of RouterShift\n"])

    def _is_marked(self) -> bool:
        try:
            return bool(self._store.get(MARKER))
        except FileNotFoundError:
            return False

    def _marked_or_unknown(self) -> bool:
        """Whether this is the run's store: one that lost its marker is not mounted, and its objects are not lost."""
        try:
            return self._is_marked()
        except OSError:
            return False

    def _say_full(self, error: OSError) -> None:
        metrics.FAILURES.labels("full").inc()
        if time.monotonic() > self._said_full + _REMIND_SECONDS:
            log.warning("%s is full, and waited for: %s", self._store, _text(error))
            self._said_full = time.monotonic()

    def _failed(self, error: OSError, since: float | None) -> float:
        """Counts a failure. Returns since when the store fails; raises UnavailableError where that is too long."""
        metrics.FAILURES.labels("unavailable").inc()
        now = time.monotonic()
        if since is None:
            log.warning("%s fails, and is tried again: %s", self._store, _text(error))
            return now
        if now - since > self._settings.outage_seconds:
            raise UnavailableError(
                f"{self._store} has failed for payloads.outage_seconds, {self._settings.outage_seconds:g}: "
                f"{_text(error)}"
            ) from None
        return since


def _text(error: OSError) -> str:
    return error.strerror or str(error)
