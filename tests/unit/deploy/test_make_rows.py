"""The rows of the gsm8k recipe: reproducible, as the recipe ships them, and right."""

import json
import re
import subprocess
import sys
from pathlib import Path


def test_the_script_makes_the_rows_that_the_recipe_ships(repository: Path, tmp_path: Path) -> None:
    shipped = repository / "deploy/recipes/gsm8k"
    subprocess.run([sys.executable, str(shipped / "make_rows.py"), "--out", str(tmp_path)], check=True)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_every_sum_in_an_answer_is_right_and_no_question_stands_twice(repository: Path) -> None:
    questions = []
    for name in ("train.jsonl", "test.jsonl"):
        for line in (repository / "deploy/recipes/gsm8k" / name).read_text().splitlines():
            row = json.loads(line)
            questions.append(row["question"])
            for left, sign, right, result in re.findall(r"<<(\d+)([-+*])(\d+)=(-?\d+)>>", row["answer"]):
                a, b = int(left), int(right)
                assert {"+": a + b, "-": a - b, "*": a * b}[sign] == int(result) > 0
            assert row["answer"].endswith(f"#### {result}")
    assert len(set(questions)) == len(questions) == 500
