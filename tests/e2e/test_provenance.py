"""A service that is started alone says what it runs on."""

import json
import signal
from pathlib import Path

from tests.support.command import RECIPE, Start, settings
from tests.support.redis_server import Server
from tests.support.torchrun import until


def test_a_service_that_is_started_alone_says_what_it_runs_on(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "runs/test/provenance.json"
    with Server(tmp_path / "data", tmp_path / "r.sock") as server:
        reward = start("serve", "reward", "--recipe", str(RECIPE), *settings(), environment={"REDIS_URL": server.url})
        until(file.is_file, timeout=60)
        reward.process.send_signal(signal.SIGTERM)
        code, _, err = reward.finish(timeout=60)
    assert code == 0, err
    found = json.loads(file.read_text())
    assert found["services"]["reward"]["environment"] == found["environment"]
    assert found["starts"][0]["command"] == "serve reward"
    assert server.url not in file.read_text()
