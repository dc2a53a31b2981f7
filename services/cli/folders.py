"""The folders of runs by name. Imports no settings: commands that only read a folder begin sooner."""

from pathlib import Path

from shared.errors import NotFoundError


def run_folder(name: str) -> Path:
    """The folder of a run by its path, or by its id below runs/. Raises NotFoundError."""
    for folder in (Path(name), Path("runs") / name):
        if folder.is_dir():
            return folder
    raise NotFoundError(f"run {name!r} has no folder here or below runs/; give the path of its folder")
