"""The payload store that a run's settings name."""

import importlib
from pathlib import Path

from shared.errors import PreconditionError
from shared.extras import missing
from shared.payloads.folder import FolderStore
from shared.payloads.settings import PayloadSettings
from shared.payloads.store import PayloadStore

FOLDER = "payloads"  # in the run's folder


def folder_of(settings: PayloadSettings, run_folder: Path) -> Path:
    """Where the store folder of a run is."""
    return run_folder / FOLDER if settings.folder is None else settings.folder / run_folder.name


def make_store(settings: PayloadSettings, run_folder: Path) -> PayloadStore | None:
    """The store of a run; None where arrays stay in the entries of streams.

    Args:
        run_folder: of the run; its name is that of a folder or prefix in a store that several runs share.

    Raises:
        PreconditionError: the folder cannot be made, or obstore makes nothing of the URL.
        MissingDependencyError: an object store without the package obstore.
    """
    if settings.store == "stream":
        return None
    if settings.store == "folder":
        folder = folder_of(settings, run_folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise PreconditionError(f"payloads.folder {folder} cannot be made: {error.strerror}") from None
        return FolderStore(folder, fsync=settings.fsync)
    try:
        module = importlib.import_module("shared.payloads.object_store")
    except ModuleNotFoundError as error:
        raise missing("payloads.store 'object_store'", error) or error from None
    url = f"{settings.url.rstrip('/')}/{run_folder.name}"
    try:
        found: PayloadStore = module.ObjectStore.at(url)
    except OSError as error:
        raise PreconditionError(f"payloads.url is {url}: {error}") from None
    return found
