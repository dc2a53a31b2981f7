"""Rows that the library reasoning_gym makes: source = "reasoning_gym:chain_sum", settings of the task in `config`.

A row has question, answer and metadata, and what the verifier reasoning_gym reads: dataset, config and entry.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from services.curriculum.data.rows import Row
from services.curriculum.data.settings import EvalSettings, SourceSettings
from shared import procedural
from shared.errors import InvalidInputError, MissingDependencyError, NotFoundError
from shared.sources import PROCEDURAL

_TRAIN_ROWS, _EVAL_ROWS = 5000, 500
_EVAL_SEED = 10**9  # entry i of seed s is that of seed s + i: the seeds must be far apart
_LONGEST_REASON = 300


def read_procedural(settings: SourceSettings) -> Iterator[Row]:
    """As many rows as `config.size` says: 5000 of a training source, 500 of a held-out set where it says nothing.

    They follow from `config.seed`: 0 for training, and far from it for held-out sets.

    Raises:
        NotFoundError: no such task; names the nearest.
        InvalidInputError: the task is one that is not used here, or `config` has a key or a value that it refuses.
        MissingDependencyError: reasoning_gym is not installed.
    """
    name = settings.source.removeprefix(PROCEDURAL)
    is_eval = isinstance(settings, EvalSettings)
    given: dict[str, Any] = settings.config if isinstance(settings.config, dict) else {}
    own = {key: value for key, value in given.items() if key not in ("seed", "size")}
    config = {"seed": _EVAL_SEED if is_eval else 0, "size": _EVAL_ROWS if is_eval else _TRAIN_ROWS, **given}
    try:
        task = procedural.create(name, config)
    except MissingDependencyError as error:
        raise MissingDependencyError(f"source {settings.source}: {error}") from None
    except NotFoundError as error:
        raise NotFoundError(f"source {settings.source}: {error}") from None
    except InvalidInputError as error:
        raise InvalidInputError(f"source {settings.source} with config {config}: {error}") from None
    for index in range(len(task)):
        entry = _entry(settings.source, task, index)
        yield Row(settings.source, index + 1, {**entry, "dataset": name, "config": own, "entry": entry})


def _entry(source: str, task: Any, index: int) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some tasks print
            made = task[index]
    except Exception as error:  # a task may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        raise InvalidInputError(f"source {source} cannot make row {index + 1}: {reason}; change config") from None
    return {key: made[key] for key in ("question", "answer", "metadata")}
