"""What docs/how-to/use-as-a-library.md shows of TRL is what happens; the plain loop is run with the other pages."""

import json
import math
import subprocess
from pathlib import Path

import pytest

from shared.errors import UnavailableError
from tests.support import trl
from tests.support.models import save_model
from tests.support.pages import blocks

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/use-as-a-library.md"

# Trains, then computes the loss of the last batch twice: as it was, and as if the old routers had been others.
SCRIPT = """
import json, sys
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig
from routershift import RouterTap
from trl_rspo import RspoTrainer

def digits(completions, **_):
    return [sum(c.isdigit() for c in text) / 8 for text in completions]

class Kept(RspoTrainer):
    def _compute_loss(self, model, inputs):
        self.last = inputs
        return super()._compute_loss(model, inputs)

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
config = GRPOConfig(
    output_dir="out", max_steps=6, num_iterations=2, num_generations=4, per_device_train_batch_size=4,
    gradient_accumulation_steps=2, max_completion_length=8, learning_rate=3e-3, logging_steps=1, use_cpu=True,
    bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, seed=1,
)
data = Dataset.from_list([{"prompt": f"{n}+{n}="} for n in range(10)])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
trainer = Kept(model, reward_funcs=digits, args=config, train_dataset=data, processing_class=tokenizer)
trainer.tap = RouterTap(trainer.model)
before = {name: value.clone() for name, value in model.named_parameters()}
trainer.train()
moved = max((value - before[name]).abs().max().item() for name, value in model.named_parameters())
batch = trainer.last
drifts = [{"scores": batch["scores"] + drift} for drift in (0.0, -0.1)]
losses = [trainer._compute_loss(trainer.model, batch | drift).item() for drift in drifts]
json.dump({"log": trainer.state.log_history, "moved": moved, "losses": losses}, open("result.json", "w"))
"""


def code(title: str) -> str:
    (text,) = [text for _, name, text in blocks(PAGE) if name == title]
    return text


def test_the_subclass_of_trl_trains_with_router_shift(tmp_path: Path) -> None:
    try:
        python = trl.python()
    except UnavailableError as error:
        pytest.skip(str(error))
    (tmp_path / "trl_rspo.py").write_text(code("trl_rspo.py"))
    (tmp_path / "train.py").write_text(SCRIPT)
    model = save_model(tmp_path / "model")
    done = subprocess.run(
        [python, "train.py", model],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "proto"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    steps = [line for line in result["log"] if "gamma" in line]
    assert len(steps) == 6
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert result["moved"] > 0
    # Each generation is trained on twice: first by the routers that sampled it, then by others.
    assert [line["gamma"] for line in steps[::2]] == pytest.approx([1.0] * 3, abs=1e-4)
    assert all(0.8 <= line["gamma"] < 0.9999 for line in steps[1::2])
    as_it_was, drifted = result["losses"]
    assert drifted != pytest.approx(as_it_was, rel=1e-3)


@pytest.mark.parametrize(
    ("title", "first", "last"), [("trl_rspo.py", "class RspoTrainer", None), ("plain.py", "tap = ", "loss = ")]
)
def test_router_shift_takes_less_than_fifteen_lines(title: str, first: str, last: str | None) -> None:
    lines = [line.strip() for line in code(title).splitlines() if line.strip()]
    begin = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next((i for i, line in enumerate(lines) if last and line.startswith(last)), len(lines) - 1)
    assert end + 1 - begin < 15
