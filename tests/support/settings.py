"""Settings of the learner for tests, by keyword."""

from typing import Any

from services.learner.settings import LearnerSettings


def learner_settings(**changes: Any) -> LearnerSettings:
    """The table [learner]; `optimizer__learning_rate=1e-3` is its `optimizer.learning_rate`, as in the environment."""
    tables: dict[str, Any] = {}
    for name, value in changes.items():
        *path, key = name.split("__")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[key] = value
    return LearnerSettings.model_validate(tables)
