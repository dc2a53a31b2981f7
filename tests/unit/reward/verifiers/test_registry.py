"""Kinds by name, from this package and from others; verifiers from the tables of a recipe."""

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item
from services.reward.verifiers.file.verifier import FileVerifier
from services.reward.verifiers.math.verifier import MathVerifier
from services.reward.verifiers.registry import GROUP, kinds, make_verifiers
from shared.errors import InvalidInputError, MissingDependencyError, NotFoundError, PreconditionError
from tests.support.entry_points import Site

PACKAGE = """
from services.reward.verifiers.base import Verdict, Verifier, VerifierSettings

class LengthSettings(VerifierSettings):
    most: int = 3

class LengthVerifier(Verifier):
    name, version, description, Settings = "length", "7", "short responses", LengthSettings

    def verify(self, item):
        right = float(len(item.response) <= self.settings.most)
        return Verdict(right, {"correct": right})
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with Site(tmp_path, monkeypatch) as site:
        yield site


def test_every_kind_describes_itself() -> None:
    for name, kind in kinds().items():
        assert kind.name == name
        assert kind.version
        assert kind.description
        assert "Reference:" in str(kind.__doc__)


def test_kinds_that_need_no_settings_are_there_without_a_table() -> None:
    assert {"countdown", "math", "choice", "exact", "regex", "json_schema", "format"} <= set(make_verifiers({}))
    assert not {"model", "remote", "composite"} & set(make_verifiers({}))


def test_tables_make_verifiers_with_settings() -> None:
    made = make_verifiers(
        {"strict": {"kind": "math", "answer": "boxed", "timeout_seconds": 3}, "math": {"decimals": 2}}
    )
    assert isinstance(made["strict"], MathVerifier)
    assert made["strict"].settings.answer == "boxed"
    assert made["strict"].settings.timeout_seconds == 3
    assert isinstance(made["math"], MathVerifier)
    assert made["math"].settings.decimals == 2


@pytest.mark.parametrize("name", ["mine", "math"])
def test_a_table_with_a_file_needs_no_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.py").write_text("def score(response): return 0.5")
    assert isinstance(make_verifiers({name: {"file": str(tmp_path / "mine.py")}})[name], FileVerifier)


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"x": {"kind": "maths"}}, r"'reward\.verifiers\.x\.kind' is 'maths'; did you mean 'math'"),
        ({"regexp": {}}, "is 'regexp'; did you mean 'regex'"),
        (
            {"x": {"kind": "math", "decimal": 3}},
            r"'reward\.verifiers\.x\.decimal'; did you mean 'reward\.verifiers\.x\.decimals'",
        ),
        ({"x": {"kind": "math", "decimals": 0}}, r"'reward\.verifiers\.x\.decimals' is '0': Input should be greater"),
        ({"x": {"kind": "remote"}}, r"'reward\.verifiers\.x\.address' Field required"),
        (
            {"x": {"kind": "composite", "parts": {"a": {"verifier": "math", "wight": 2}}}},
            r"'reward\.verifiers\.x\.parts\.a\.wight'; did you mean 'reward\.verifiers\.x\.parts\.a\.weight'",
        ),
        ({"x": {"kind": "composite", "parts": {"a": {"verifier": "mat"}}}}, "verifier = 'mat'; did you mean 'math'"),
        (
            {
                "x": {"kind": "composite", "parts": {"a": {"verifier": "y"}}},
                "y": {"kind": "composite", "parts": {"a": {"verifier": "x"}}},
            },
            r"reward\.verifiers\.x is a part of itself",
        ),
    ],
)
def test_tables_that_are_wrong_say_what_is_near(tables: dict[str, dict[str, Any]], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        make_verifiers(tables)


def test_what_a_kind_needs_is_missed_under_the_tables_name() -> None:
    with pytest.raises(NotFoundError, match=r"reward\.verifiers\.taste: model is nowhere"):
        make_verifiers({"taste": {"kind": "model", "model": "nowhere"}})


async def test_another_package_adds_a_kind(site: Site) -> None:
    site.install(GROUP, "length = routershift_length:LengthVerifier", "routershift_length", PACKAGE)
    scorer = Scorer(make_verifiers({"short": {"kind": "length", "most": 1}}), RewardSettings(processes=1))
    items = [Item("", "ab", {})]
    try:
        (plain,), (short,) = await asyncio.gather(scorer.score("length", items), scorer.score("short", items))
    finally:
        await scorer.close()
    assert plain.verdict is not None
    assert short.verdict is not None
    assert (plain.verdict.reward, short.verdict.reward) == (1.0, 0.0)
    assert (plain.version, short.version) == ("7", "7")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("length = routershift_length:Nothing", "AttributeError"),
        ("length = routershift_nowhere:LengthVerifier", "ModuleNotFoundError"),
        ("length = routershift_length:LengthSettings", "is no subclass of Verifier"),
        ("math = routershift_length:LengthVerifier", "the name 'math' is taken"),
    ],
)
def test_an_entry_point_that_is_broken_is_named(site: Site, entry: str, text: str) -> None:
    site.install(GROUP, entry, "routershift_length", PACKAGE)
    with pytest.raises(PreconditionError, match=f"^entry point {entry} of routershift-length.*{text}"):
        kinds()


def test_the_registry_loads_neither_sympy_nor_torch() -> None:
    imported = "from services.reward.verifiers.registry import make_verifiers"
    code = f"import sys; {imported}; make_verifiers({{}}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "services.reward.verifiers.math.verifier" in loaded
    assert not {"sympy", "torch", "transformers"} & set(loaded)


@pytest.mark.parametrize(("name", "package"), [("json_schema", "jsonschema"), ("math", "latex2sympy2_extended")])
def test_a_package_that_is_missing_is_named_with_its_extra_and_stops_no_other_verifier(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.startswith((package, "services.reward.verifiers"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    registry = importlib.import_module("services.reward.verifiers.registry")
    made = registry.make_verifiers({})
    made["countdown"].start()
    with pytest.raises(MissingDependencyError, match=rf"verifier {name} needs .*{package}.*routershift\[reward\]"):
        made[name].start()


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli.main", "score", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_scores_a_file(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    rows = [
        {"prompt": "1/3?", "response": r"\boxed{0.33}", "reference": {"answer": r"\frac{1}{3}"}},
        {"response": "x", "reference": {}},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    done = cli("--verifier", "math", "--input", str(file), "--set", "reward.verifiers.math.decimals=2")
    assert done.returncode == 0, done.stderr
    scored, refused = map(json.loads, done.stdout.splitlines())
    assert scored["outcome"] == "scored"
    assert scored["reward"] == 1.0
    assert scored["parts"] == {"correct": 1.0, "valid": 1.0}
    assert scored["seconds"] > 0
    assert refused["outcome"] == "refused"
    assert refused["reward"] is None
    assert "reference of math" in refused["error"]


REWARD = """
async def score(response, reference, prompt=None):
    print(response)
    return {"reward": float(reference["sum"] == int(response)), "length": len(prompt)}
"""


def test_the_command_line_runs_a_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text(REWARD)
    (tmp_path / "recipes" / "r.toml").write_text('[run]\nmodel = "none"\n[reward.verifiers.mine]\nfile = "mine.py"\n')
    rows = [{"prompt": "2+2?", "response": response, "reference": {"sum": 4}} for response in ("4", "5", "four")]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = cli(
        "--verifier", "mine", "--input", str(tmp_path / "items.jsonl"), "--recipe", str(tmp_path / "recipes" / "r.toml")
    )
    assert done.returncode == 0, done.stderr
    scored = [json.loads(line) for line in done.stdout.splitlines()]
    assert [s["reward"] for s in scored] == [1.0, 0.0, None]
    assert scored[0]["parts"] == {"correct": 1.0, "length": 4.0}
    assert re.fullmatch(r".*mine\.py:4: score raises ValueError: .*'four'.*", scored[2]["error"])
    assert "verifier mine prints: 4\n" in done.stderr


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def score(response:", "mine.py:1: SyntaxError"),
        ("def reward(response): pass", "did you mean function = 'reward'?"),
        ("def score(text): pass", "mine.py:1: score needs a parameter 'text'"),
        ("import os; os.abort()", "ends with -6"),
    ],
)
def test_the_command_line_refuses_a_file_that_cannot_be_used(tmp_path: Path, source: str, text: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "items.jsonl").write_text('{"response": "1"}')
    table = f"reward.verifiers.mine.file={tmp_path / 'mine.py'}"
    done = cli("--verifier", "mine", "--input", str(tmp_path / "items.jsonl"), "--set", table)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("routershift: reward.verifiers.mine: ")
    assert text in line


def test_the_command_line_shows_references_as_training_has_them(tmp_path: Path) -> None:
    """There they are protobuf messages, which know only doubles."""
    (tmp_path / "mine.py").write_text("def score(response, reference): return str(reference) == response")
    rows = [("7", 7), ("7", 7.0), ("0.5", 0.5), ("None", None), ("[1, 2.5]", [1, 2.5]), ("9007199254740992", 2**53 + 1)]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps({"response": r, "reference": v}) for r, v in rows))
    table = f"reward.verifiers.mine.file={tmp_path / 'mine.py'}"
    done = cli("--verifier", "mine", "--input", str(tmp_path / "items.jsonl"), "--set", table)
    assert [json.loads(line)["reward"] for line in done.stdout.splitlines()] == [1.0] * 6, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("verifier", "line", "text"),
    [
        ("maht", '{"response": "1"}', "'maht'"),
        ("math", '{"response": 1}', "line 1"),
        ("math", "{", "line 1 is not JSON"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path: Path, verifier: str, line: str, text: str) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(line)
    done = cli("--verifier", verifier, "--input", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith("routershift: ")
    assert text in done.stderr
    assert done.stdout == ""
