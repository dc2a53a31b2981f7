"""A run that an earlier version began and was killed in goes on under this one, and under the earlier one again."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.learner.checkpointing.checkpoint import step_of
from shared.streams.run import FORMAT
from shared.tracking import records
from tests.support.command import Start
from tests.support.recording import RUN, check_out, commit_of, recordings, unpack

MORE = 3  # steps, each time
PORTS = [f"{s}.{key}=0" for s in ("curriculum", "generation", "reward", "learner") for key in ("port", "metrics_port")]


def audited(start: Start) -> dict[str, Any]:
    """What an audit finds: all trajectories are accounted for, and no group was trained on twice."""
    code, out, err = start("audit", f"runs/{RUN}").finish(timeout=120)
    assert code == 0, out + err
    found: dict[str, Any] = json.loads(out)
    assert found["ledger"]["balanced"]
    assert found["ledger"]["dead"] == {}
    return found


def go_on(start: Start, run: Path, environment: dict[str, str] | None = None) -> None:
    """Goes on for some steps to the end of the run."""
    before = max(step_of(path) for path in (run / "checkpoints").glob("step-*"))
    last = before + MORE
    flags = [part for setting in (*PORTS, f"run.steps={last}") for part in ("--set", setting)]
    code, out, err = start("run", "recipe.toml", *flags, environment=environment).finish(timeout=240)
    assert code == 0, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["steps"] == last
    # Of a step whose checkpoint was durable when the learner was killed, the record may not have been.
    steps = [each["step"] for each in records.steps(run / records.LEARNER)]
    assert steps[-MORE:] == list(range(before + 1, last + 1))
    assert sorted(set(steps)) == steps


def trained(run: Path) -> list[tuple[int, str]]:
    """The groups that the run's checkpoints contain, each with its step."""
    lists = [json.loads(path.read_text()) for path in (run / "checkpoints/trained").glob("step-*.json")]
    return sorted((step, group) for each in lists for group, step in each.items())


@pytest.mark.parametrize("recording", recordings(), ids=commit_of)
def test_a_run_of_an_earlier_version_goes_on(recording: Path, start: Start, tmp_path: Path) -> None:
    run = unpack(recording, tmp_path)
    before, known = audited(start), trained(run)
    assert before["ledger"]["in_flight"], "it was killed with work in flight"
    go_on(start, run)
    after = audited(start)
    assert after["ledger"]["prompted"] > before["ledger"]["prompted"]
    code, out, err = start("status", f"runs/{RUN}", "--json").finish(timeout=120)
    assert (code, json.loads(out)["format"]) == (0, FORMAT), err
    groups = [group for _, group in trained(run)]
    assert len(groups) == len(set(groups))
    assert trained(run)[: len(known)] == known, "what was trained on before stands as it was"

    # And back, under the newest of them: this version has written a checkpoint, the streams and provenance.json since.
    if recording != recordings()[-1]:
        return
    try:
        earlier = check_out(commit_of(recording), tmp_path / "code")
    except LookupError as error:
        pytest.skip(f"the way back needs the code of that commit: {error}")
    go_on(start, run, earlier)
    audited(start)
