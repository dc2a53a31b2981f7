"""Services that are up until they are told to stop, and a run that people pause and resume meanwhile."""

import asyncio
import json
import signal
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.clients import LearnerClient
from shared.settings import AccessSettings
from shared.tracking import records
from tests.support.command import RECIPE, Start, settings
from tests.support.torchrun import until

GROUPS = 8
SAMPLES = 8


async def settle(endpoints: Path, access: AccessSettings) -> None:
    """What a paused learner has trained on is settled."""
    address = json.loads(endpoints.read_text())["services"]["learner"]["grpc"]
    async with LearnerClient(address, access=access) as learner:
        await learner.checkpoint()


def test_up_serves_until_it_is_told_to_stop_and_people_pause_and_resume_it(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    tokens, token, wrong = tmp_path / "tokens", tmp_path / "token", tmp_path / "wrong"
    secret, other = "o" * 40, "s" * 40
    tokens.write_text(f"operate {secret}\nsample,score {other}\n")
    token.write_text(secret)
    wrong.write_text(other)
    flags = settings(run__steps=100_000, access__tokens=tokens, access__token=token, learner__checkpoints__every=1)
    up = start("up", "--recipe", str(RECIPE), *flags)

    def done() -> list[int]:
        return [record["step"] for record in records.read(folder / records.LEARNER)]

    def status() -> dict[str, Any]:
        code, out, err = start("status", "test", "--json").finish(timeout=60)
        assert code == 0, err
        shown: dict[str, Any] = json.loads(out)
        assert shown["ledger"]["balanced"]
        return shown

    until(lambda: len(done()) > 0, timeout=120)
    assert status()["phase"] == "training"
    for service in json.loads((folder / "endpoints.json").read_text())["services"].values():
        with urllib.request.urlopen(service["metrics"], timeout=30) as page:  # noqa: S310  # of our own
            assert 'routershift_run_info{run="test"} 1.0' in page.read().decode()
        assert urlsplit(service["metrics"]).netloc in (folder / "prometheus.yml").read_text()

    code, _, err = start("pause", "test", "--set", f"access.token={wrong}").finish(timeout=60)
    assert code == 2, err
    assert "PERMISSION_DENIED" in err or "operate" in err
    code, out, err = start("pause", "test").finish(timeout=120)
    assert code == 0, err
    rested = int(out.split()[3].rstrip(";"))
    before = done()
    assert before[-1] == rested
    # A trained group gives its ticket back before its checkpoint is durable and settles it: at rest, all hold one.
    asyncio.run(settle(folder / "endpoints.json", AccessSettings(token=token)))
    shown = status()
    assert shown["phase"] == "paused"
    assert 0 < shown["ledger"]["in_flight"] <= 3 * GROUPS * SAMPLES
    assert done() == before
    code, out, err = start("resume", "test").finish(timeout=60)
    assert (code, out) == (0, f"goes on after step {rested}\n"), err
    until(lambda: len(done()) > len(before), timeout=120)

    code, out, _ = start("runs").finish(timeout=60)
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["test", "running"]
    up.process.send_signal(signal.SIGTERM)
    code, _, err = up.finish(timeout=60)
    assert code == 0, err
    assert up.nothing_left(), up.alive()
    assert not (folder / "prometheus.yml").exists(), "Prometheus would miss services that have ended"
    code, _, err = start("pause", "test").finish(timeout=60)
    assert code == 2
    assert "run test is not running" in err
    code, _, err = start("report", "test").finish(timeout=60)
    assert code == 0, err
