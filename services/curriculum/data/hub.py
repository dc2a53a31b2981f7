"""Reads the rows of data sets by name, with the library `datasets` and its cache."""

from collections.abc import Iterator

from services.curriculum.data.rows import Row
from services.curriculum.data.settings import SourceSettings
from shared.errors import InvalidInputError, MissingDependencyError, NotFoundError

_LONGEST_REASON = 300  # characters of the library's own error


def read_data_set(settings: SourceSettings, split: str) -> Iterator[Row]:
    """The rows of one split, in order. Runs no code of the data set.

    HF_DATASETS_OFFLINE=1 and HF_HUB_OFFLINE=1 keep it to what the cache has.

    Args:
        settings: name, configuration and revision.
        split: where the settings name none.

    Raises:
        NotFoundError: no such data set, configuration, split or revision, or it is neither cached nor reachable.
        InvalidInputError: it has no rows.
        MissingDependencyError: `datasets` is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"source {settings.source} is the name of a data set, which needs the package datasets: "
            "pip install 'routershift[data]'; or name a file, as train.jsonl"
        ) from None
    split = settings.split or split
    name = settings.source if settings.config is None else f"{settings.source} ({settings.config})"
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(settings.source, settings.config, split=split, revision=settings.revision)
    except Exception as error:  # the library, and those below it, raise all kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        raise NotFoundError(
            f"source {name}, split {split}, cannot be loaded: {reason}. Check source, config, split and revision; "
            "without a network, load it into the cache before; a file ends in .jsonl, .json, .csv, .tsv or .parquet"
        ) from None
    if not len(rows):
        raise InvalidInputError(f"source {name}, split {split}, holds no rows; set split")
    for number, columns in enumerate(rows, 1):
        yield Row(f"{settings.source}/{split}", number, columns)
