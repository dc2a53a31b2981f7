"""Rows that the library reasoning_gym makes: source = "reasoning_gym:chain_sum", settings of the task in `config`.

A row has question, answer and metadata, and what the verifier reasoning_gym reads: dataset, config and entry.
"""

import difflib
from collections.abc import Iterator
from typing import Any

from services.curriculum.data.rows import Row
from services.curriculum.data.settings import EvalSettings, SourceSettings
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
        InvalidInputError: `config` has a key or a value that the task refuses.
        MissingDependencyError: reasoning_gym is not installed.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"source {settings.source} needs the package reasoning-gym: pip install 'routershift[reasoning-gym]'"
        ) from None
    name = settings.source.removeprefix(PROCEDURAL)
    if name not in DATASETS:
        near = difflib.get_close_matches(name, list(DATASETS), n=1, cutoff=0.0)[0]
        raise NotFoundError(f"source {settings.source}: no such task; did you mean {near!r}?")
    is_eval = isinstance(settings, EvalSettings)
    given: dict[str, Any] = settings.config if isinstance(settings.config, dict) else {}
    own = {key: value for key, value in given.items() if key not in ("seed", "size")}
    config = {"seed": _EVAL_SEED if is_eval else 0, "size": _EVAL_ROWS if is_eval else _TRAIN_ROWS, **given}
    try:
        dataset = reasoning_gym.create_dataset(name, **config)
        for index in range(len(dataset)):
            made = dataset[index]
            entry = {"question": made["question"], "answer": made["answer"], "metadata": made["metadata"]}
            yield Row(settings.source, index + 1, {**entry, "dataset": name, "config": own, "entry": entry})
    except Exception as error:  # a task refuses by AssertionError, TypeError or ValueError, and may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        raise InvalidInputError(f"source {settings.source} with config {config}: {reason}; change config") from None
