"""The ranks of a learner other than 0: they do their part of what rank 0 does, and serve nothing.

On one machine rank 0 starts them: `learner.parallel.processes` of them, itself included. torchrun, on one machine or
several, starts all ranks.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys

import setproctitle

from services.learner.distributed.ranks import Ranks
from services.learner.settings import LearnerSettings
from services.learner.trainer import Trainer
from shared.errors import RouterShiftError
from shared.payloads.bulk import Bulk
from shared.payloads.registry import make_store
from shared.payloads.settings import PayloadSettings
from shared.process import logs
from shared.process.exits import exit_code
from shared.settings import RolloutSettings, RunSettings

log = logging.getLogger(__name__)

_LAST_SECONDS = 5.0  # of a process that has been told to end, or of the one that knows why it has to


def follow(
    settings: LearnerSettings, run: RunSettings, rollout: RolloutSettings, payloads: PayloadSettings, log_level: str
) -> int:
    """Runs a follower until rank 0 closes or ends; gives the exit code of this process."""
    ranks = Ranks.open(settings.device, settings.parallel.timeout)
    name = f"learner-{ranks.rank}"
    setproctitle.setproctitle(f"routershift follow {name}")
    logs.configure(name, run.path / "logs", log_level)
    # A terminal and torchrun send signals to all ranks. Rank 0 needs us to drain, and ends us then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        store = make_store(payloads, run.path)
        Trainer(settings, run, rollout, ranks, Bulk(store, payloads) if store else None).follow()
    except RouterShiftError as error:
        log.error("%s ends: %s", name, error)
        return exit_code(error)
    except Exception:
        log.exception("%s crashed", name)
        return 1
    return 0


class Followers:
    """The other ranks on this machine, as child processes of rank 0; none where there is one rank, or torchrun."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(
        self, settings: LearnerSettings, run: RunSettings, rollout: RolloutSettings, payloads: PayloadSettings
    ) -> None:
        """Makes this process rank 0. The ranks find each other when each opens its `Ranks`."""
        if settings.parallel.processes == 1 or "WORLD_SIZE" in os.environ:
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        rendezvous = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(settings.parallel.processes),
        }
        order = json.dumps(
            {
                "learner": settings.model_dump(mode="json"),
                "run": run.model_dump(mode="json"),
                "rollout": rollout.model_dump(mode="json"),
                "payloads": payloads.model_dump(mode="json"),
                "log_level": logging.getLevelName(logging.getLogger().handlers[0].level),
            }
        )
        # torch looks for the others where torchrun would say that they are: in the environment.
        os.environ.update(rendezvous, RANK="0", LOCAL_RANK="0")
        for rank in range(1, settings.parallel.processes):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "services.learner.follower"),
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=asyncio.subprocess.PIPE,
            )
            self._processes.append(process)
            if process.stdin:
                process.stdin.write(order.encode())
                process.stdin.close()

    async def watch(self) -> None:
        """Ends this process when a follower ends: work in progress cannot be cancelled, and would wait for it."""
        waits = {asyncio.create_task(process.wait()): process for process in self._processes}
        if not waits:
            return
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            # What ended it may well end us, in words of our own.
            await asyncio.sleep(_LAST_SECONDS)
        finally:
            for task in waits:
                task.cancel()
        process = waits[done.pop()]
        rank = 1 + self._processes.index(process)
        log.critical("learner-%d ended with code %s; its log says why", rank, process.returncode)
        os._exit(1)

    async def ended(self) -> None:
        """Waits for followers that were told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(process.wait() for process in self._processes)), _LAST_SECONDS)

    async def close(self) -> None:
        """None is left on return."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def main() -> int:
    order = json.load(sys.stdin)
    return follow(
        LearnerSettings.model_validate(order["learner"]),
        RunSettings.model_validate(order["run"]),
        RolloutSettings.model_validate(order["rollout"]),
        PayloadSettings.model_validate(order["payloads"]),
        order["log_level"],
    )


if __name__ == "__main__":
    sys.exit(main())
