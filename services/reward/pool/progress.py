"""Where a worker process is, in memory that it shares with the service.

The service must know which item a silent worker hangs in. A message for each item would cost more than a cheap
verifier; two stores cost nothing. Readers may see one store without the other, which at worst moves a deadline by the
time of one item.
"""

import mmap
import os
from typing import Self

_BYTES = 24


class Progress:
    def __init__(self, fd: int) -> None:
        """Maps the memory behind the descriptor, and leaves the descriptor open."""
        self.fd = fd
        self._map = mmap.mmap(fd, _BYTES)
        view = memoryview(self._map)
        self._counts = view[:16].cast("q")
        self._times = view[16:].cast("d")

    @classmethod
    def create(cls) -> Self:
        fd = os.memfd_create("progress")
        os.ftruncate(fd, _BYTES)
        made = cls(fd)
        made._counts[0] = -1
        return made

    def begin(self, item: int, now: float) -> None:
        """The worker begins this item, at `now` on the machine's monotonic clock."""
        self._times[0] = now
        self._counts[0] = item

    @property
    def item(self) -> int:
        """The item begun last; -1 before the first."""
        return self._counts[0]

    @property
    def began(self) -> float:
        """When it was begun, on that clock."""
        return self._times[0]

    @property
    def end(self) -> int:
        """The worker begins no item from this one on. The service may lower it to take items back."""
        return self._counts[1]

    @end.setter
    def end(self, item: int) -> None:
        self._counts[1] = item

    def close(self) -> None:
        self._counts.release()
        self._times.release()
        self._map.close()
        os.close(self.fd)
