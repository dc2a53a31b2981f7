"""The lease of a role of a run: one learner and one curriculum at a time, on whatever machine."""

import asyncio
import math
import secrets
from typing import Any

from redis.asyncio import Redis

from shared.errors import PreconditionError
from shared.process.ownership import Holder, taken
from shared.streams.keys import Keys
from shared.streams.scripts import Fence, Script

_RENEWALS = 3  # in the time after which a silent holder loses it


class Lease:
    """Held from `acquire` to `release`, if `keep` runs meanwhile."""

    def __init__(self, redis: Redis, keys: Keys, seconds: float) -> None:
        """Args: seconds: silence after which another process may take the role over."""
        self.fence = Fence(keys.fences, "", 0)  # before `acquire`: of a process that writes for no role
        self._keys = keys
        self._seconds = seconds
        # Two holders in one process, as in tests, are two holders.
        self._me = f"{Holder.current().encode()}\n{secrets.token_hex(8)}"
        self._script = Script(redis, "lease")

    async def acquire(self, role: str) -> None:
        """Takes a role of the run.

        A process of this machine is known to be there or gone, and its lease is respected or taken over at once. Of
        one elsewhere only silence can tell: its lease is waited for until it runs out or is seen to be renewed.

        Raises:
            PreconditionError: another process holds it and lives.
        """
        self.fence = Fence(self._keys.fences, role, 0)
        gone, least = b"", math.inf
        while True:
            number, other, left = await self._call("acquire", gone)
            if number:
                self.fence = Fence(self._keys.fences, role, number)
                return
            holder = Holder.decode(other.decode().partition("\n")[0])
            if holder.is_gone:
                gone = other
            elif holder.is_here or left > least:
                raise PreconditionError(taken(role, self._keys.run, holder))
            else:
                least = left
                await asyncio.sleep(self._seconds / (2 * _RENEWALS))

    async def keep(self) -> None:
        """Renews the lease for ever. Raises as `confirm` does."""
        while True:
            await asyncio.sleep(self._seconds / _RENEWALS)
            await self.confirm()

    async def confirm(self) -> None:
        """Renews the lease. For a writer of files, which no script can fence, right before it writes.

        Raises:
            PreconditionError: another process has taken the role over; whatever this one still writes is refused.
        """
        if self.fence.role and not await self._call("renew", self.fence.number):
            raise PreconditionError(
                f"another process has become the {self.fence.role} of run {self._keys.run}: "
                f"this one was silent for streams.lease_seconds = {self._seconds:g} s and ends"
            )

    async def release(self) -> None:
        """Lets another process have it at once."""
        await self._call("release", self.fence.number)

    async def _call(self, action: str, last: bytes | int) -> Any:
        keys = [self._keys(f"lease:{self.fence.role}"), self.fence.key]
        milliseconds = round(1000 * self._seconds)
        return await self._script(keys=keys, args=[action, self.fence.role, self._me, milliseconds, last])
