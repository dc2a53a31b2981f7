"""The process of an environment's file, from the outside: started, looked after, and killed."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.environments.kinds.file.settings import FileSettings
from shared.errors import InvalidInputError
from shared.process.variables import of_workers

# The kernel ends a process with the thread that started it: this one stays as long as we do.
_starter = ThreadPoolExecutor(1, "environment-host")


class HostProcess:
    """Runs the environments of one file. Started where it is asked for and not there."""

    def __init__(self, settings: FileSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    def target(self) -> str:
        """For gRPC, of a process that runs. Blocks while it starts.

        Raises:
            InvalidInputError: the file cannot be run; names it, the line and the fix.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._clear()
                _starter.submit(self._start).result()
            return f"unix:{self._folder}/socket"

    def serves(self, target: str) -> bool:
        """Whether the process of this target runs."""
        process = self._process
        return process is not None and process.poll() is None and target == f"unix:{self._folder}/socket"

    def kill(self, target: str | None = None) -> None:
        """Ends the process and what it has started in its session.

        Args:
            target: only where it is still the one of this target.
        """
        with self._lock:
            if target in (None, f"unix:{self._folder}/socket"):
                self._clear()

    def _start(self) -> None:
        settings = self._settings
        self._folder = tempfile.mkdtemp(prefix="routershift-environment-")  # for this user alone
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "services.environments.kinds.file.host", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=of_workers(settings.variables), start_new_session=True,
        )  # fmt: skip
        try:
            self._order(process)
        except BaseException:
            self._clear()
            raise

    def _order(self, process: "subprocess.Popen[bytes]") -> None:
        settings = self._settings
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        order = {"settings": settings.model_dump(mode="json"), "socket": f"{self._folder}/socket"}
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.close()
        with process.stdout as answers:
            if not select.select([answers], [], [], settings.start_seconds)[0]:
                raise InvalidInputError(
                    f"{settings.file} is not loaded within start_seconds = {settings.start_seconds:g}; raise it in "
                    "this table, or load less"
                )
            answer = answers.readline()
        if not answer:
            raise InvalidInputError(
                f"{settings.file}: the process that loads it ends with {process.wait()}; its log says more"
            )
        if error := json.loads(answer)["error"]:
            raise InvalidInputError(error)

    def _clear(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._folder:
            shutil.rmtree(Path(self._folder), ignore_errors=True)
            self._folder = ""
