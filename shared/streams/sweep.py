"""The sweep of the payload store: what nothing refers to, and nothing will, is deleted.

A key names the entry of the prompt whose group it holds. While that entry is there, its group may still be handed over,
however long that waits. Once it is gone it never comes to another hand-over, so an object to which no entry and no dead
letter refers then is an orphan: its writer died before it handed over, or another was faster, or who ended the group
died before it deleted. Its age is only a margin for mistakes, such as a Redis that a service was not meant for.
"""

import asyncio
import logging
import time
from typing import Any

from redis.asyncio import Redis

from shared.payloads import metrics
from shared.payloads.bulk import Bulk
from shared.payloads.settings import PayloadSettings
from shared.payloads.store import Stored, source_of
from shared.streams.keys import Keys

log = logging.getLogger(__name__)


class Sweep:
    """Sweeps the payload store of a run. One process at a time does: the learner."""

    def __init__(self, redis: Redis, keys: Keys, bulk: Bulk, settings: PayloadSettings) -> None:
        self._redis = redis
        self._keys = keys
        self._bulk = bulk
        self._settings = settings

    async def run(self) -> None:
        """Sweeps for ever, as a task beside the work. A store that fails is left for the next time."""
        while True:
            try:
                await self.once()
            except OSError as error:
                metrics.FAILURES.labels("unavailable").inc()
                log.warning("%s is not swept: %s", self._bulk.store, error)
            await asyncio.sleep(self._settings.sweep_seconds)

    async def once(self) -> int:
        """Deletes all orphans that are older than `orphan_seconds`; gives their number.

        Raises:
            OSError: the store cannot be listed.
        """
        found = await asyncio.to_thread(lambda: list(self._bulk.store.list()))
        metrics.HELD.set(sum(stored.size for stored in found))
        metrics.HELD_OBJECTS.set(len(found))
        latest = time.time() - self._settings.orphan_seconds
        swept = 0
        for stored in found:
            if stored.modified <= latest and await self._is_orphan(stored):
                log.info("payload %s of %d bytes is an orphan, and deleted", stored.key, stored.size)
                await self._bulk.delete(stored.key, "swept")
                swept += 1
        return swept

    async def _is_orphan(self, stored: Stored) -> bool:
        source = source_of(stored.key)
        if source is None or await self._is_referred_to(stored.key):
            return False
        stream, entry = source
        waiting: Any = await self._redis.xrange(self._keys(stream), entry, entry)
        # Looked at again: the hand-over may have come between the two answers. Afterwards there is none.
        return not waiting and not await self._is_referred_to(stored.key)

    async def _is_referred_to(self, key: str) -> bool:
        return bool(await self._redis.hexists(self._keys.payloads, key))
