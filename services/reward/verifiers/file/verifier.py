"""A reward function of somebody's own, in a file."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from services.reward.printed import Printed
from services.reward.verifiers.base import BatchVerifier, Item, Verdict, VerifierSettings
from services.reward.verifiers.file.function import REFERENCE_KEY, load
from shared.errors import InvalidInputError
from shared.process.variables import of_workers
from shared.user_module import read_source
from shared.values import one_line

_PRINTED_BYTES = 1 << 20
_MAX_SAID_CHARACTERS = 500


class FileSettings(VerifierSettings):
    file: Path = Field(description="Python file with a function that judges; in a recipe, relative to the recipe")
    function: str | None = Field(
        None, description='its name; default: "score", or "scores" where the file has only that'
    )
    batch_size: int = Field(32, ge=2, description="items that `scores`, or a coroutine function, is given at once")
    threshold: float = Field(1.0, description="reward from which a response counts as correct; a part `correct` wins")
    source: str | None = Field(
        None, description="what is run in the place of the file's text; the service sets it to that text when it starts"
    )


class FileVerifier(BatchVerifier):
    """Reference: any JSON value; one value alone is the same as {"answer": value}.

    The function is `score(response, reference, prompt, messages)`, or takes some of these; it gives a number, or a dict
    of numbers with the key "reward", whose other keys are parts. Or it is `scores(items)`, of dicts with these keys,
    and gives a list. Both may be `async`. Whatever else it does is the outcome `failed`, and no reward.
    The file is read once, so that all worker processes run the same, and only they run it.
    """

    name: ClassVar[str] = "file"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a Python function in a file of yours"
    reference_key: ClassVar[str] = REFERENCE_KEY
    part_names: ClassVar[Mapping[str, str]] = {
        "correct": "what the function says, else 1 where the reward reaches the setting threshold"
    }
    Settings: ClassVar[type[VerifierSettings]] = FileSettings
    settings: FileSettings

    def __init__(self, settings: VerifierSettings) -> None:
        """Raises NotFoundError, InvalidInputError: there is no such file, or it is no text."""
        super().__init__(settings)
        if self.settings.source is None:
            self.settings = self.settings.model_copy(
                update={"source": read_source(self.settings.file, "a Python file with def score(...)")}
            )
        self.batch_size = self.settings.batch_size
        self._name = self.settings.function or "score"

    @property
    def place(self) -> str:
        return f"{self.settings.file}: {self._name}"

    @property
    def judged_by(self) -> str:
        source = (self.settings.source or "").encode()
        return f"{self.version}+{hashlib.sha256(source).hexdigest()[:12]}"

    def check(self) -> None:
        """Loads the file in a process of its own.

        Raises:
            InvalidInputError: it cannot be loaded, or its function cannot be called; names file, line and fix.
        """
        settings = self.settings
        printed = Printed.create(_PRINTED_BYTES)
        try:
            answer = json.loads(_answer(settings, printed))
        finally:
            printed.close()
        if answer["error"]:
            raise InvalidInputError(answer["error"])
        self.batch_size = settings.batch_size if answer["batched"] else 1
        self._name = answer["function"]

    def start(self) -> None:
        """Raises InvalidInputError: as `check`."""
        settings = self.settings
        self._function = load(settings.file, settings.source or "", settings.function)
        self.batch_size = settings.batch_size if self._function.is_batched else 1

    def close(self) -> None:
        self._function.close()

    def verify_batch(self, items: Sequence[Item]) -> Sequence[Verdict | Exception]:
        read = [item.with_response(self.text(item)) for item in items]
        return self._function.judge(read, self.settings.threshold)


def _answer(settings: FileSettings, printed: Printed) -> bytes:
    """What the process says that loads the file. Raises InvalidInputError where it says nothing."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "services.reward.verifiers.file.check", str(os.getpid()), str(printed.fd)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=of_workers(settings.environment), pass_fds=[printed.fd],
        start_new_session=True,
    )  # fmt: skip
    try:
        answer, _ = process.communicate(settings.model_dump_json().encode(), settings.start_seconds)
    except subprocess.TimeoutExpired:
        raise InvalidInputError(
            f"{settings.file} is not loaded within start_seconds = {settings.start_seconds:g}; raise it in this table, "
            "or load less"
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what the file has started
        process.communicate()
    if not answer:
        said = one_line(printed.tail, _MAX_SAID_CHARACTERS)
        last = f", and had printed: {said}" if said else ""
        raise InvalidInputError(f"{settings.file}: the process that loads it ends with {process.returncode}{last}")
    return answer
