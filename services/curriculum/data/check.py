"""Looks at the data of a recipe without training on it."""

from pathlib import Path

from services.curriculum.data.loading import load
from services.curriculum.data.report import Report
from services.curriculum.data.usable import Judge
from services.curriculum.origin import NO_PROMPTS
from services.curriculum.settings import Settings
from shared.errors import InvalidInputError


def check(settings: Settings, model: Path, judge: Judge | None = None) -> Report:
    """Reads all rows as a run would, and says what it found: counts, lengths, duplicates, contamination, bad rows.

    Args:
        settings: with tables [[data.train]]; `run.task` and services are not looked at.
        model: folder with config.json, tokenizer and chat template; weights are not needed.
        judge: judge(verifier, reference) says why that verifier cannot read a reference, and None where it can.

    Returns:
        The report. Its `problems` are what a start would be refused for; none: it would begin.

    Raises:
        InvalidInputError: the recipe has no data.
        NotFoundError, CorruptDataError: the model folder has no tokenizer, or a broken one.
    """
    if not settings.data.train:
        raise InvalidInputError(NO_PROMPTS)
    return load(settings, model, judge).report
