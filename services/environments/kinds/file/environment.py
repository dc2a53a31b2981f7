"""An environment of a file, which runs in a process of its own and is asked over gRPC."""

import asyncio
import atexit
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, ClassVar, TypeVar

from routershift.v1 import environment_pb2 as env
from services.environments.base import Action, EnvironmentSettings, Observation, Step
from services.environments.kinds.file.process import HostProcess
from services.environments.kinds.file.settings import NAME, FileSettings
from services.environments.kinds.remote import RemoteEnvironment, RemoteSettings, described
from services.environments.playing.failures import EpisodeFailedError
from shared.clients import EnvironmentClient
from shared.errors import InvalidInputError, RouterShiftError
from shared.user_module import read_source

T = TypeVar("T")

_MARGIN_SECONDS = 5.0  # in which a process says itself that the environment is late
_PING_SECONDS = 5.0
_ANSWERED = "INTERNAL"  # the status of an environment that raised: its process is well
_LOOK_SECONDS = 0.25  # how often it is seen that a process has ended

_hosts: dict[str, "Host"] = {}
_lock = threading.Lock()


class FileEnvironment(RemoteEnvironment):
    """Whatever the file does, it does to its own process: one that does not answer is killed, and started again.

    All episodes of one table share the process. Those that were open in one that is killed have failed, and are played
    again from their beginning. The file is read once, so that a process that starts later runs the same.
    """

    name = "file"
    version = "1"
    description = "a Python class in a file of yours, in a process of its own"
    Settings: ClassVar[type[EnvironmentSettings]] = FileSettings

    def _described(self) -> env.Environment:
        """Starts the process, the first time. Raises NotFoundError, InvalidInputError: the file cannot be run."""
        if not isinstance(self.settings, FileSettings):
            raise InvalidInputError(f"settings are {type(self.settings).__name__}; expected FileSettings")
        self._file = self.settings
        self._host = host_of(self._file)
        return self._host.about

    async def reset(self, task: Mapping[str, Any], seed: int) -> Observation | None:
        self._target = await asyncio.to_thread(self._host.process.target)
        self._remote = _remote(self._file, self._target)
        return await self._watched(super().reset(task, seed))

    async def step(self, action: Action) -> Step:
        return await self._watched(super().step(action))

    async def close(self) -> None:
        if self._client is not None and not self._host.process.serves(self._target):
            self._episode = ""  # nobody is left to be told
        await super().close()

    async def _watched(self, call: Coroutine[Any, Any, T]) -> T:
        """What the process answers. One that answers nobody is killed: its event loop is blocked."""
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
                if not self._host.process.serves(self._target):
                    raise EpisodeFailedError(
                        f"{self._file.file}: the process of the environment has ended; see the log"
                    )
            return task.result()
        except InvalidInputError:
            raise
        except RouterShiftError as error:
            if error.status != _ANSWERED and not await self._answers():
                await asyncio.to_thread(self._host.process.kill, self._target)
            raise
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _answers(self) -> bool:
        """Whether the process does, whatever it is asked."""
        if not self._host.process.serves(self._target):
            return False
        try:
            async with EnvironmentClient(self._remote.target, _PING_SECONDS, self._remote.access) as client:
                await client.environments()
        except RouterShiftError:
            return False
        return True


class Host:
    """The process of one table, and what the environment in it says of itself."""

    def __init__(self, settings: FileSettings) -> None:
        """Raises InvalidInputError: the file cannot be run; names it, the line and the fix."""
        self.process = HostProcess(settings)
        self.about = described(_remote(settings, self.process.target()))


def host_of(settings: FileSettings) -> Host:
    """That of these settings, with the text that the file has when it is asked for first.

    Raises:
        NotFoundError, InvalidInputError: there is no such file, or it cannot be run.
    """
    key = settings.model_dump_json()
    with _lock:
        if key not in _hosts:
            source = settings.source
            if source is None:
                source = read_source(settings.file, "a Python file with class Mine(Environment)")
            _hosts[key] = Host(settings.model_copy(update={"source": source, "file": settings.file.absolute()}))
        return _hosts[key]


@atexit.register
def close_all() -> None:
    """Ends all processes."""
    with _lock:
        for host in _hosts.values():
            host.process.kill()
        _hosts.clear()


def _remote(settings: FileSettings, target: str) -> RemoteSettings:
    """How the process is asked."""
    return RemoteSettings.model_construct(
        address=f"grpc://{target}",
        environment=NAME,
        start_seconds=settings.start_seconds,
        call_seconds=settings.answer_seconds + _MARGIN_SECONDS,
        attempts=1,
    )
