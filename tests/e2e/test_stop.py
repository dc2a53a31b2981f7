"""A criterion ends a run in order: the last version is evaluated, and the summary says why."""

import json
from pathlib import Path

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings


def test_tokens_end_a_run(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    flags = settings(run__steps=1000, run__stop__tokens=1000, run__evaluate_every=0)
    code, out, err = start("run", str(RECIPE), *flags).finish(timeout=240)
    assert code == 0, err
    steps = json.loads(out)["steps"]
    assert 1 <= steps < 20
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["end"].endswith("tokens trained on have reached run.stop.tokens = 1000")
    assert f"ended:      {summary['end']}" in err
    assert [each["version"] for each in records.read(folder / records.EVALUATIONS)] == [0, steps]
    assert list((folder / "checkpoints").glob(f"step-{steps:08d}-*"))
    code, out, _ = start("runs").finish(timeout=60)
    assert out.splitlines()[1].split()[:3] == ["test", "finished", f"{steps}/1000"]
