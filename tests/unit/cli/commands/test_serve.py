"""Services start with what their images have: those that run no model have no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import RECIPE

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from services.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("service", ["curriculum", "environments", "reward"])
def test_a_service_that_runs_no_model_needs_no_torch(service: str, tmp_path: Path) -> None:
    environment = {"REDIS_URL": "redis://127.0.0.1:1", "ROUTERSHIFT_REDIS__CONNECT_SECONDS": "0.1"}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "serve", service, "--recipe", str(RECIPE)],
        env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "redis.url: no Redis answers there" in ran.stderr, ran.stderr
