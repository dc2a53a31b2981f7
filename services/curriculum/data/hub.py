"""Reads the rows of data sets by name, with the library `datasets` and its cache."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from services.curriculum.data.rows import Row
from services.curriculum.data.settings import SourceSettings
from shared.errors import InvalidInputError, MissingDependencyError, NotFoundError
from shared.sources import ENDINGS

_LONGEST_REASON = 300  # characters of the library's own error
_NAMES_SHOWN = 5


def read_data_set(settings: SourceSettings, split: str) -> Iterator[Row]:
    """The rows of one split, in order. Runs no code of the data set.

    HF_DATASETS_OFFLINE=1 and HF_HUB_OFFLINE=1 keep it to what the cache has, as does a Hub that gives no answer within
    HF_HUB_ETAG_TIMEOUT.

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
    why = _why_offline()
    try:
        with _offline() if why else nullcontext():
            rows = datasets.load_dataset(settings.source, settings.config, split=split, revision=settings.revision)
    except Exception as error:  # the library, and those below it, raise all kinds
        said = f"source {name}, split {split}, cannot be loaded"
        if why and isinstance(error, ConnectionError):
            raise NotFoundError(f"{said}: {why}, and {_cached()}. {_by_hand(settings)}") from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        check = f"Check source, config, split and revision; a file ends in {', '.join(ENDINGS)}"
        raise NotFoundError(f"{said}: {why and f'{why}: '}{reason}. {check}") from None
    if not len(rows):
        raise InvalidInputError(f"source {name}, split {split}, holds no rows; set split")
    for number, columns in enumerate(rows, 1):
        yield Row(f"{settings.source}/{split}", number, columns)


def _why_offline() -> str:
    """Why the cache alone counts; "" where the Hub answers. Asks it once: the library would ask for half a minute."""
    import datasets
    from huggingface_hub import constants, get_session

    if datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of which library it is depends on the version
        reason = " ".join(str(error).split()) or type(error).__name__
        return (
            f"{constants.ENDPOINT} cannot be reached within HF_HUB_ETAG_TIMEOUT = {constants.HF_HUB_ETAG_TIMEOUT} s "
            f"({reason[:_LONGEST_REASON]})"
        )
    return ""


@contextmanager
def _offline() -> Iterator[None]:
    """In the block the library looks only into its cache."""
    import datasets

    before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _cached() -> str:
    """What the cache has, in its place."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE)
    names = sorted(each.name.replace("___", "/") for each in folder.glob("*") if each.is_dir())
    has = f"has {', '.join(names[:_NAMES_SHOWN])}" if names else "is empty"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"the cache {folder} lacks it: it {has}{more}"


def _by_hand(settings: SourceSettings) -> str:
    arguments = ", ".join(json.dumps(each) for each in (settings.source, settings.config) if each is not None)
    return (
        f"Where there is a network, run python -c 'import datasets; datasets.load_dataset({arguments})' and copy that "
        "folder, which HF_HOME moves; or name a file, as train.jsonl"
    )
