"""What a log shows of a server's URL."""

import pytest

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
