"""`routershift init`: what is guessed of a model and a file, and a recipe that passes its own dry run."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.cli.main import main
from services.cli.recipe import Recipe
from services.generation.engines.vllm import limits
from shared.recipes import load
from shared.settings import SERVICES, StreamSettings
from tests.support.explained import unexplained
from tests.support.models import save_model
from tests.support.published_rows import ROWS, SOLVE, verl

GSM8K = Path(__file__).parents[4] / "deploy/recipes/gsm8k/train.jsonl"
FREE = [
    part for service in SERVICES for key in ("port", "metrics_port") for part in ("--set", f"{service}.{key}=0")
]  # ports of other runs on this machine are no fault of a recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", "olmoe", max_position_embeddings=2048)


def lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def sums(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(count)]


def test_rows_in_the_form_of_gsm8k(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(model), str(GSM8K)]) == 0
    said = capsys.readouterr().out
    assert "preset = 'gsm8k': 200 of 200 rows have its columns" in said
    recipe = load(Recipe, tmp_path / "recipe.toml", {})
    assert list(unexplained((tmp_path / "recipe.toml").read_text())) == []
    assert recipe.data.train[0].verifier == "math"
    assert recipe.learner.algorithm == "rspo"
    assert main(["run", "recipe.toml", "--dry-run", *FREE, "--set", "generation.engine=torch"]) == 0
    assert main(["data", "check", "recipe.toml"]) == 0


@pytest.mark.parametrize("preset", [preset for preset in ROWS if preset != "gsm8k"])
def test_rows_in_the_form_of_a_preset(
    model: Path, tmp_path: Path, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their columns are Jinja, some of it over several lines, and every reason is a comment of one line."""
    file, output = lines(tmp_path / "rows.jsonl", [row for row, _, _ in ROWS[preset]]), tmp_path / "made.toml"
    assert main(["init", str(model), str(file), "--output", str(output)]) == 0
    *reasons, _, _ = capsys.readouterr().out.splitlines()
    assert [f"# {reason}" for reason in reasons] == output.read_text().splitlines()[1 : len(reasons) + 1]
    load(Recipe, output, {})


def test_rows_of_verl_in_parquet(model: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "train.parquet", tmp_path / "made.toml"
    rows = [verl(SOLVE.format(f"What is {i} + {i}?"), str(2 * i), extra_info={"index": i}) for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    assert main(["init", str(model), str(file), "--output", str(output)]) == 0
    assert main(["data", "check", str(output)]) == 0
    assert main(["data", "check", str(file), "--model", str(model)]) == 0


def test_a_column_whose_name_has_a_line_break_puts_no_line_into_the_recipe(model: Path, tmp_path: Path) -> None:
    rows = [{**row, "odd\n[run]\nsteps = 1": i} for i, row in enumerate(sums(20))]
    file, output = lines(tmp_path / "rows.jsonl", rows), tmp_path / "made.toml"
    assert main(["init", str(model), str(file), "--output", str(output)]) == 0
    assert load(Recipe, output, {}).run.steps == 100


@pytest.mark.parametrize(
    ("rows", "columns", "verifier"),
    [
        (sums(20), {"prompt": "question", "reference": "answer"}, "math"),
        (
            [{"instruction": f"Say word {i}", "label": f"word {i}", "id": i} for i in range(20)],
            {"prompt": "instruction", "reference": "label", "id": "id"},
            "exact",
        ),
        (
            [{"problem": f"Which? {i}", "target": "B", "id": 3} for i in range(20)],
            {"prompt": "problem", "reference": "target"},
            "choice",
        ),
        (
            [{"text": f"{i}?", "reward_model": {"ground_truth": f"\\frac{{{i}}}{{2}}"}} for i in range(20)],
            {"prompt": "text", "reference": "reward_model.ground_truth"},
            "math",
        ),
    ],
)
def test_columns_and_verifier_are_guessed(
    model: Path, tmp_path: Path, rows: list[dict[str, Any]], columns: dict[str, str], verifier: str
) -> None:
    file = lines(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "made.toml"
    assert main(["init", str(model), str(file), "--output", str(output)]) == 0
    (source,) = load(Recipe, output, {}).data.train
    assert (dict(source.columns), source.verifier) == (columns, verifier)
    assert main(["data", "check", str(output)]) == 0


def test_columns_of_other_names_are_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"task": {"text": f"Add {i} and {i}."}, "sum": str(2 * i), "prompt": None} for i in range(20)]
    file, output = lines(tmp_path / "rows.jsonl", rows), tmp_path / "made.toml"
    command = ["init", str(model), str(file), "--output", str(output), "--reference", "sum", "--prompt"]
    assert main([*command, "task.txt"]) == 2
    assert "--prompt is 'task.txt', and the first rows of" in capsys.readouterr().err
    assert main([*command, "task.text"]) == 0
    (source,) = load(Recipe, output, {}).data.train
    assert (dict(source.columns), source.verifier) == ({"prompt": "task.text", "reference": "sum"}, "math")
    assert main(["data", "check", str(output)]) == 0
    named = ["--prompt", "task.text", "--reference", "sum"]
    assert main(["data", "check", str(file), "--model", str(model), *named]) == 0
    assert main(["data", "check", str(output), *named]) == 2
    assert "--prompt and --reference are for a FILE" in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm")
@pytest.mark.parametrize(("kind", "engine"), [("qwen3_moe", "vllm"), ("minimax_m2", "torch")])
def test_the_engine_is_one_that_serves_the_model(
    kind: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "built_for_cpu", lambda: True)
    folder, output = save_model(tmp_path / "model", kind), tmp_path / "made.toml"
    file = lines(tmp_path / "rows.jsonl", sums(20))
    assert main(["init", str(folder), str(file), "--output", str(output)]) == 0
    assert load(Recipe, output, {}).generation.engine == engine


def test_room_that_the_model_needs(tmp_path: Path) -> None:
    """Long responses and a long context: streams and the KV cache of their defaults would be refused."""
    wide = {"num_hidden_layers": 24, "num_experts_per_tok": 8, "max_position_embeddings": 1 << 17}
    folder = save_model(tmp_path / "wide", "qwen3_moe", **wide)
    file, output = lines(tmp_path / "rows.jsonl", sums(20)), tmp_path / "made.toml"
    assert main(["init", str(folder), str(file), "--output", str(output)]) == 0
    recipe = load(Recipe, output, {})
    assert list(unexplained(output.read_text())) == []
    assert recipe.streams.max_bytes > StreamSettings().max_bytes
    assert main(["run", str(output), "--dry-run", *FREE]) == 0


def test_a_reward_file_judges(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, reward = lines(tmp_path / "rows.jsonl", sums(20)), tmp_path / "my_reward.py"
    reward.write_text("def score(response, reference):\n    return float(reference in response)\n")
    output = tmp_path / "made.toml"
    assert main(["init", str(model), str(file), "--reward", str(reward), "--output", str(output)]) == 0
    recipe = load(Recipe, output, {})
    assert list(unexplained(output.read_text())) == []
    assert recipe.data.train[0].verifier == "mine"
    assert recipe.reward.verifiers["mine"]["file"] == str(reward)
    assert main(["data", "check", str(output)]) == 0
    reward.write_text("def judge(response, reference):\n    return 1.0\n")
    assert main(["init", str(model), str(file), "--reward", str(reward), "--output", str(tmp_path / "no.toml")]) == 2
    assert "has no function 'score'; it has judge" in capsys.readouterr().err
    reward.unlink()
    assert main(["init", str(model), str(file), "--reward", str(reward), "--output", str(tmp_path / "no.toml")]) == 2
    assert "my_reward.py" in capsys.readouterr().err
    assert not (tmp_path / "no.toml").exists()


def test_a_csv_file_beside_the_recipe_stays_with_it(model: Path, tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["question", "answer"])
        table.writeheader()
        table.writerows(sums(20))
    assert main(["init", str(model), str(tmp_path / "rows.csv"), "--output", str(tmp_path / "made.toml")]) == 0
    assert 'source = "./rows.csv"' in (tmp_path / "made.toml").read_text()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"colour": "red", "size": 3}], "it has colour, size: name the right one with --prompt"),
        ([{"question": "why?", "size": 3}], "no column of"),
        ([], "holds no rows"),
    ],
)
def test_files_of_which_nothing_can_be_guessed(
    model: Path, tmp_path: Path, rows: list[dict[str, Any]], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(tmp_path / "rows.jsonl", rows)
    assert main(["init", str(model), str(file), "--output", str(tmp_path / "made.toml")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "made.toml").exists()


@pytest.mark.parametrize("command", ["init {folder} {file} --output {made}", "data check {file} --model {folder}"])
def test_a_model_that_is_not_there(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "rows.jsonl", sums(3))
    named = {"folder": tmp_path / "none", "file": file, "made": tmp_path / "made.toml"}
    assert main([part.format(**named) for part in command.split()]) == 2
    assert "none; no such folder: expected a Hugging Face model folder" in capsys.readouterr().err


def test_a_model_that_no_run_can_train(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(model, tmp_path / "model")
    config = tmp_path / "model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "nemotron_h"}))
    file, made = lines(tmp_path / "rows.jsonl", sums(3)), tmp_path / "made.toml"
    assert main(["init", str(tmp_path / "model"), str(file), "--output", str(made)]) == 2
    assert "cannot be trained: its Mamba layers" in capsys.readouterr().err
    assert not made.exists()


def test_nothing_is_overwritten(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine.toml"
    output.write_text("mine")
    assert main(["init", str(model), str(GSM8K), "--output", str(output)]) == 2
    assert "exists; name another file" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_data_check_names_row_column_value_and_fix(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*sums(8), {"question": "What is 0 + 1?", "answer": "1"}, {"question": "What?", "answer": ""}]
    file = lines(tmp_path / "rows.jsonl", rows)
    assert main(["data", "check", str(file), "--model", str(model)]) == 2
    said = capsys.readouterr().out
    assert "10 rows" in said
    assert f"bad: {file} row 10, column answer, is '': the row has no reference; fill it" in said
    assert f"duplicates: {file}:9 is {file}:1" in said
    assert "prompt tokens:" in said
    assert "MEND data.train.0: 1 of 10 rows cannot be used" in said
    assert main(["data", "check", str(file), "--model", str(model), "--json", "--set", "data.max_bad_share=0.2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["train"][0]["bad"], report["train"][0]["duplicates"], report["problems"]) == (1, 1, [])
    assert report["train"][0]["prompt_tokens"]["histogram"]


def test_a_task_has_no_rows_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(GSM8K.parents[1] / "countdown.toml")]) == 2
    assert "run.task is 'countdown', whose prompts are not rows" in capsys.readouterr().err


def test_data_check_of_a_file_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "rows.jsonl", sums(3))
    assert main(["data", "check", str(file)]) == 2
    assert "give --model MODEL" in capsys.readouterr().err
