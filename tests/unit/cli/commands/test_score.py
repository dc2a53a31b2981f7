"""`routershift score`: what it reads, what it says of a verifier that raises, and how it exits."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import cli

RAISES = '''"""Raises in a helper of its own, below a library."""

import json

from services.reward.verifiers.base import Item, Verdict, Verifier, VerifierSettings


class Raises(Verifier):
    name = "raises"
    version = "1"
    description = "for a test"
    Settings = VerifierSettings

    def verify(self, item: Item) -> Verdict:
        json.loads("{")  # line 15
        raise AssertionError
'''


def score(
    folder: Path, *lines: dict[str, Any], verifier: str = "exact", **options: Any
) -> subprocess.CompletedProcess[str]:
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return cli.run("score", "--verifier", verifier, "--input", "items.jsonl", cwd=folder, **options)


def rewards(ran: subprocess.CompletedProcess[str]) -> list[float | None]:
    return [json.loads(line)["reward"] for line in ran.stdout.splitlines()]


REWARD = """
def score(response, reference):
    return float(response == reference)

def half(response):
    return 0.5
"""


@pytest.mark.parametrize(("verifier", "reward"), [("mine.py", 1.0), ("./mine.py", 1.0), ("mine.py:half", 0.5)])
def test_a_reward_file_needs_no_recipe(tmp_path: Path, verifier: str, reward: float) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    ran = score(tmp_path, {"response": "4", "reference": "4"}, verifier=verifier)
    assert ran.returncode == 0, ran.stderr
    assert rewards(ran) == [reward]


@pytest.mark.parametrize(
    ("verifier", "said"),
    [
        ("mine", "for the function of a file: --verifier mine.py"),
        ("other", "a table of a recipe needs --recipe, and a reward file is named with its ending, as FILE.py"),
        ("mth", "did you mean 'math'?"),
        ("none.py", "--verifier none.py does not exist; expected a Python file with a function score"),
        ("none.py:half", "--verifier none.py does not exist"),
        ("mine.py:hlaf", "has no function 'hlaf'; it has score, half; did you mean function = 'half'?"),
        ("broken.py", "broken.py:1: SyntaxError"),
        ("model", "needs a table [reward.verifiers.model] with model"),
    ],
)
def test_a_verifier_that_is_not_there_is_said_before_any_line(tmp_path: Path, verifier: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    (tmp_path / "broken.py").write_text("def score(")
    ran = score(tmp_path, {"no": "line"}, verifier=verifier)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("verifier", "response", "reference"),
    [
        ("exact", "Paris", "Paris"),
        ("exact", "Paris", ["Paris", "Paris, France"]),
        ("math", "\\boxed{0.5}", "1/2"),
        ("math", "\\boxed{5}", 5),
        ("choice", "Answer: B", "B"),
        ("regex", "abc", "a.c"),
    ],
)
def test_a_plain_reference_is_the_one_value_of_the_verifier(
    tmp_path: Path, verifier: str, response: str, reference: Any
) -> None:
    ran = score(tmp_path, {"response": response, "reference": reference}, verifier=verifier)
    assert ran.returncode == 0, ran.stderr
    assert rewards(ran) == [1.0]


def test_messages_are_what_the_function_of_a_file_gets(tmp_path: Path) -> None:
    source = "def score(response, messages): return [message['content'] for message in messages].index('4')"
    (tmp_path / "mine.py").write_text(source)
    said = [{"role": "assistant", "content": "add(2, 2)"}, {"role": "tool", "content": "4"}]
    settings = {"changes": {"ROUTERSHIFT_REWARD__VERIFIERS__MINE__FILE": "mine.py"}}
    ran = score(tmp_path, {"response": "It is 4.", "messages": said}, verifier="mine", **settings)
    assert rewards(ran) == [1.0], ran.stderr
    for messages in ("4", [4], [{"role": "tool", "text": "4"}], [{"role": 3, "content": "4"}]):
        ran = score(tmp_path, {"response": "4", "messages": messages}, verifier="mine", **settings)
        assert ran.returncode == 2
        assert "items.jsonl, line 1" in ran.stderr


def test_a_plain_reference_where_there_is_no_one_value(tmp_path: Path) -> None:
    ran = score(tmp_path, {"response": "x", "reference": "x"}, verifier="countdown")
    assert ran.returncode == 2
    assert "items.jsonl, line 1 is" in ran.stderr


def test_nothing_that_could_be_scored_is_exit_1(tmp_path: Path) -> None:
    lines = [{"response": "x", "reference": {"answer": 7}}, {"response": "x", "reference": {}}]
    ran = score(tmp_path, *lines)
    assert ran.returncode == 1
    assert rewards(ran) == [None, None]
    assert "routershift: none of 2 lines could be scored" in ran.stderr
    ran = score(tmp_path, *lines, {"response": "x", "reference": "y"})
    assert (ran.returncode, rewards(ran)) == (0, [None, None, 0.0])
    ran = score(tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_a_verifier_that_raises_names_the_line_in_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    info = tmp_path / "raises-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: raises\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[routershift.verifiers]\nraises = raises:Raises\n")
    ran = score(tmp_path, {"response": "x"}, verifier="raises", changes={"PYTHONPATH": str(tmp_path)})
    assert ran.returncode == 1, ran.stderr
    error = json.loads(ran.stdout)["error"]
    assert error.startswith("JSONDecodeError: ")
    assert error.endswith(f"({tmp_path / 'raises.py'}:15)")


def test_a_verifier_that_needs_a_table_says_which(tmp_path: Path) -> None:
    ran = score(tmp_path, {"response": "x"}, verifier="model")
    assert ran.returncode == 2
    assert "needs a table [reward.verifiers.model] with model" in ran.stderr
    assert "--set reward.verifiers.model.model=..." in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    ["{", "[" * 100_000, "[]", '"x"', '{"response": "\udc80"}'.encode("utf-8", "surrogatepass").decode("latin-1")],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "items.jsonl").write_bytes(line.encode("latin-1"))
    ran = cli.run("score", "--verifier", "exact", "--input", "items.jsonl", cwd=tmp_path)
    assert ran.returncode == 2
    assert "items.jsonl, line 1" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"response": "x"}, "line 2: reference of exact has no answer; expected a text"),
        ({"response": "x", "reference": None}, "line 2: reference of exact has no answer; expected a text"),
        ({"response": "x", "reference": ""}, "line 2: reference of exact has answer = ''; expected a text"),
        ({"response": "x", "reference": {"anwser": "x"}}, "line 2: reference of exact has no answer; expected a text"),
    ],
)
def test_a_line_without_a_reference_is_named_with_the_field(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    ran = score(tmp_path, {"response": "x", "reference": "x"}, row, verifier="exact")
    assert json.loads(ran.stdout.splitlines()[1])["error"].startswith(said)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b'{"response": "x", "response": "y"}', "line 1 is not JSON: an object has the key 'response' twice; take one"),
        (b'{"response": "\xe9"}', "line 1 is not UTF-8: invalid continuation byte; convert it: iconv -f ISO-8859-1 -t"),
        ('{"response": "x"}'.encode("utf-16"), "is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8"),
    ],
)
def test_lines_that_python_would_misread_are_refused(tmp_path: Path, contents: bytes, said: str) -> None:
    (tmp_path / "lines.jsonl").write_bytes(contents)
    ran = cli.run("score", "--verifier", "exact", "--input", "lines.jsonl", cwd=tmp_path)
    assert ran.returncode == 2
    assert said in ran.stderr
