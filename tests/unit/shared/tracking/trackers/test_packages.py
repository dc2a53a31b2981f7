"""A tracker whose package is missing, or whose settings cannot be right, is refused before anything starts."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.errors import MissingDependencyError
from shared.settings import BaseSettings, RunSettings
from shared.tracking.registry import make_trackers
from shared.tracking.trackers import packages
from shared.tracking.trackers.settings import MlflowSettings


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(packages, "distribution", nothing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # as W&B leaves one, which Python takes for a package
    settings = BaseSettings(run=RunSettings(id="test", folder=tmp_path, model=tmp_path))
    with pytest.raises(
        MissingDependencyError,
        match=rf"run\.trackers has '{name}', which needs the package {name}.*: pip install 'routershift\[{name}\]'",
    ):
        make_trackers([name], settings, "learner")


def test_a_password_in_the_address_of_mlflow_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"uri holds a password.*MLFLOW_TRACKING_PASSWORD"):
        MlflowSettings(uri="https://me:secret@mlflow.example")
