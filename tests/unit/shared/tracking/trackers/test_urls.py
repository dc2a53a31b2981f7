"""What a log shows of a server's URL."""

from pathlib import Path

import pytest

from shared.errors import InvalidInputError
from shared.recipes import load
from shared.settings import BaseSettings
from shared.tracking.trackers.urls import without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@mlflow.example:5000/path", "https://mlflow.example:5000/path"),
        ("http://127.0.0.1:7860/?write_token=secret#secret", "http://127.0.0.1:7860/"),
        ("postgresql://me:secret@[::1]/mlflow?sslmode=require", "postgresql://[::1]/mlflow"),
        ("sqlite:////data/runs/mlflow.db", "sqlite:////data/runs/mlflow.db"),
        ("owner/space", "owner/space"),
        ("runs/trackio", "runs/trackio"),
    ],
)
def test_a_secret_is_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_a_password_in_a_setting_is_refused_without_saying_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="uri holds a password") as failure:
        load(BaseSettings, None, {}, [f"run.model={tmp_path}", "tracking.mlflow.uri=https://me:secret@mlflow.example"])
    assert "secret" not in str(failure.value)
