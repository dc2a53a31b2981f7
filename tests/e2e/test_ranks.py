"""A learner of two ranks in a run: it ends in order, and starts again as a whole."""

import json
import re
import signal
from pathlib import Path

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings
from tests.support.torchrun import until


def test_a_run_with_two_ranks_goes_on_from_one_and_ends_with_all(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    for processes, steps in ((1, 2), (2, 4)):
        flags = settings(run__steps=steps, learner__parallel__processes=processes)
        invocation = start("run", str(RECIPE), *flags)
        code, out, err = invocation.finish(timeout=240)
        assert code == 0, err
        assert "Traceback" not in err
        assert json.loads(out.splitlines()[-1])["steps"] == steps
        assert invocation.nothing_left(), invocation.alive()
        assert records.read(folder / records.EVALUATIONS)[-1]["version"] == steps
    assert [record["step"] for record in records.read(folder / records.LEARNER)] == [1, 2, 3, 4]
    newest = max((folder / "checkpoints").glob("step-*"))
    assert [path.name.split("-model")[0] for path in sorted(newest.glob("*.safetensors"))] == [
        "shard-00001",
        "shard-00002",
    ]
    assert (folder / "logs/learner-1.jsonl").is_file()


def test_a_learner_starts_again_with_all_its_ranks_when_one_dies_and_an_interrupt_drains_them(
    start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "runs/test"

    def done() -> int:
        return max((record["step"] for record in records.read(folder / records.LEARNER)), default=0)

    flags = settings(run__steps=1000, learner__parallel__processes=2, learner__checkpoints__every=1)
    invocation = start("run", str(RECIPE), *flags)
    until(lambda: done() > 0, timeout=120)
    invocation.signal("learner-1", signal.SIGKILL)
    until(lambda: "going on from step" in (folder / "logs/learner.jsonl").read_text(), timeout=120)
    resumed = done()
    until(lambda: done() > resumed, timeout=120)

    invocation.signal("learner-1", signal.SIGTERM)  # as torchrun sends it to every rank
    invocation.process.send_signal(signal.SIGINT)
    code, _, err = invocation.finish(timeout=60)
    assert code == 130, err
    assert re.findall(r"(\S+) (?:was )?ended .*; it is started again", err) == ["learner"], err
    assert invocation.nothing_left(), invocation.alive()
    assert [record["step"] for record in records.steps(folder / records.LEARNER)] == list(range(1, done() + 1))
    assert (folder / "checkpoints" / f"step-{done():08d}-0000").is_dir()
