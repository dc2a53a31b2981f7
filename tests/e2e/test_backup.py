"""A run is backed up while it goes on, lost with its Redis, and goes on from the backup with a whole account."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from services.cli.local.redis import find_server
from shared.tracking import records
from tests.support import processes
from tests.support.command import RECIPE, Start, settings

SCRIPTS = Path(__file__).parents[2] / "deploy" / "backup"
MORE = 3  # steps after the one of the backup


def wait_for(path: Path, pattern: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not any(path.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.1)


@pytest.mark.skipif(not shutil.which("redis-cli"), reason="no redis-cli: apt-get install redis-tools")
def test_a_run_that_was_lost_goes_on_from_its_backup(start: Start, tmp_path: Path) -> None:
    run, backups = tmp_path / "runs/test", tmp_path / "backups"
    flags = settings(run__evaluate_every=0, learner__checkpoints__every=2, learner__checkpoints__keep=1)
    lost = start("run", str(RECIPE), *flags, "--set", "run.steps=100000")
    wait_for(run / "checkpoints", "step-00000004-*")
    command = {"REDIS_CLI": f"redis-cli -s {processes.redis_socket(lost.process.pid)}"}
    for _ in range(2):  # the second replaces the first
        done = subprocess.run(
            [SCRIPTS / "backup.sh", run, backups, "1"], env=command, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        time.sleep(1.0)  # names are of seconds
    (backup,) = backups.iterdir()
    assert done.stdout.strip() == str(backup)
    (kept,) = (backup / "run/checkpoints").glob("step-*")
    step = int(kept.name.split("-")[1])
    processes.kill(lost.mark)
    assert lost.nothing_left()
    shutil.rmtree(tmp_path / "runs")

    restore = [SCRIPTS / "restore.sh", backup, run, run / "redis"]
    environment = {"REDIS_SERVER": find_server(), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(restore, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = subprocess.run(restore, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "nothing is overwritten" in again.stderr

    code, out, err = start("run", str(RECIPE), *flags, "--set", f"run.steps={step + MORE}").finish(timeout=240)
    assert code == 0, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["steps"] == step + MORE
    steps = [each["step"] for each in records.steps(run / records.LEARNER)]
    assert steps == list(range(1, step + MORE + 1))
    code, out, err = start("audit", "runs/test").finish(timeout=120)
    assert code == 0, out + err
