"""Whether the optional package of a tracker is installed."""

from importlib.metadata import PackageNotFoundError, distribution

from shared.errors import MissingDependencyError


def require(tracker: str, *packages: str) -> None:
    """Checks that what the extra of the tracker's name installs is there, without importing it.

    The names of distributions are looked up, and not those of modules: a folder wandb/ in the working folder, where
    W&B itself puts its files, looks like a module.

    Raises:
        MissingDependencyError: a package is missing; names it and the extra.
    """
    for package in packages:
        try:
            distribution(package)
        except PackageNotFoundError:
            raise MissingDependencyError(
                f"run.trackers has {tracker!r}, which needs the package {package}: pip install 'routershift[{tracker}]'"
            ) from None
