"""A learner of two ranks in a run: it starts again as a whole, and ends in order."""

import re
import signal
from pathlib import Path

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings
from tests.support.torchrun import until


def test_a_learner_starts_again_with_all_its_ranks_when_one_dies_and_an_interrupt_drains_them(
    start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "runs/test"

    def done() -> int:
        return max((record["step"] for record in records.read(folder / records.LEARNER)), default=0)

    # Arrays in files: each rank reads its own rows.
    flags = settings(
        run__steps=1000, learner__parallel__processes=2, learner__checkpoints__every=1, payloads__store="folder"
    )
    invocation = start("run", str(RECIPE), *flags)
    until(lambda: any((folder / "checkpoints").glob("step-*")), timeout=120)
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
    audited = start("audit", str(folder))
    code, out, err = audited.finish(timeout=60)
    assert code == 0, out + err
