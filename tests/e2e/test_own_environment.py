"""An environment of one's own, from a file: the one of the page is trained in as it stands there."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from services.learner.checkpointing.checkpoint import trained_groups
from shared.tracking import records
from shared.tracking.sample import TRAINED
from shared.tracking.samples import Samples
from tests.support.chats import CHATML
from tests.support.command import Start, settings
from tests.support.models import save_model
from tests.support.pages import ROOT, install

PAGE = ROOT / "docs/how-to/write-an-environment.md"
STEPS, GROUPS, SAMPLES = 2, 4, 8


def test_the_game_of_the_page_is_trained_to_an_exact_account(start: Start, tmp_path: Path) -> None:
    install(PAGE, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(save_model(tmp_path / "model"))
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    # So few numbers that a model at random names the right one now and then.
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"most": most}) + "\n" for most in range(2, 8)))
    flags = settings(
        run__steps=STEPS,
        run__groups_per_step=GROUPS,
        rollout__n=SAMPLES,
        rollout__max_tokens=48,
        rollout__stop='["1", "2", "3", "4", "5", "6", "7"]',
        data__held_out_share=0.4,
        curriculum__evaluation__problems=2,
        environments__port=0,
        environments__metrics_port=0,
        learner__samples__groups=GROUPS,
    )
    code, out, err = start("run", "recipe.toml", *flags).finish(timeout=240)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["steps"] == STEPS
    assert summary["trajectories_trained"] == STEPS * GROUPS * SAMPLES
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished", "stale"}

    folder = tmp_path / "runs/test"
    assert all(e["mean_turns"] > 1 for e in records.read(folder / records.EVALUATIONS))
    assert len(trained_groups(folder / "checkpoints")) == STEPS * GROUPS
    samples = Samples(folder)
    kept = [samples.read(s.step, s.trajectory) for s in samples.summaries() if s.outcome == TRAINED]
    heard = {segment.text for sample in kept for segment in sample.segments if not segment.is_sampled}
    assert heard <= {"higher", "lower", "say a number"} | {f"1 to {most}?" for most in range(2, 8)}
    assert {"higher", "lower"} & heard, "numbers were named, and answered"
    assert {sample.reward for sample in kept} == {0.0, 1.0}
