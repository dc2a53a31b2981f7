"""A reward function of somebody's own: loaded, called, and its results read, whatever it does."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.reward.verifiers.base import Item, Verdict
from services.reward.verifiers.file.verifier import FileSettings, FileVerifier
from shared.errors import InvalidInputError, NotFoundError


@pytest.fixture(autouse=True)
def path_of_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a file puts its folder on it."""
    monkeypatch.setattr("sys.path", [*sys.path])


def loaded(tmp_path: Path, source: str, **settings: Any) -> FileVerifier:
    """In this process, as a worker process does."""
    file = tmp_path / "mine.py"
    file.write_text(source)
    verifier = FileVerifier(FileSettings(file=file, **settings))
    verifier.start()
    return verifier


def judged(verifier: FileVerifier, *references: Any) -> Sequence[Verdict | Exception]:
    return verifier.verify_batch([Item("2+2?", "4", reference) for reference in references])


def verdict(tmp_path: Path, source: str, reference: Any = "4", **settings: Any) -> Verdict:
    (given,) = judged(loaded(tmp_path, source, **settings), {"answer": reference})
    assert isinstance(given, Verdict), given
    return given


@pytest.mark.parametrize(
    ("source", "reward", "parts"),
    [
        ("def score(response, reference, prompt=None):\n    return 0.5", 0.5, {"correct": 0.0}),
        ("def score(response, reference): return response == reference", 1.0, {"correct": 1.0}),
        ("def score(response): return len(response)", 1.0, {"correct": 1.0}),
        ("def score(prompt, response): return prompt == '2+2?'", 1.0, {"correct": 1.0}),
        ("def score(*, reference, response): return reference == '4'", 1.0, {"correct": 1.0}),
        ("def score(**given): return given['reference'] == '4'", 1.0, {"correct": 1.0}),
        ("def score(response, reference, strict=True): return float(strict)", 1.0, {"correct": 1.0}),
        ("async def score(response, reference): return response == reference", 1.0, {"correct": 1.0}),
        ("def scores(items): return [i['response'] == i['reference'] for i in items]", 1.0, {"correct": 1.0}),
        ("async def scores(items): return [{'reward': 2, 'n': 1} for i in items]", 2.0, {"correct": 1.0, "n": 1.0}),
        ("def score(response): return {'reward': 0.2, 'correct': 1, 'style': 3}", 0.2, {"correct": 1.0, "style": 3.0}),
        ("import numpy as np\ndef score(response): return np.float32(0.5)", 0.5, {"correct": 0.0}),
        ("import numpy as np\ndef score(response): return {'reward': np.array(0.5)}", 0.5, {"correct": 0.0}),
        ("class C:\n    def __call__(self, response): return 1\nscore = C()", 1.0, {"correct": 1.0}),
        ("from functools import partial\ndef f(response, x): return x\nscore = partial(f, x=2)", 2.0, {"correct": 1.0}),
        ("score = lambda response, reference: -1e-3", -1e-3, {"correct": 0.0}),
    ],
)
def test_what_a_function_may_be_and_give(tmp_path: Path, source: str, reward: float, parts: dict[str, float]) -> None:
    given = verdict(tmp_path, source)
    assert (given.reward, dict(given.parts)) == (reward, parts)


def test_the_threshold_says_what_is_correct(tmp_path: Path) -> None:
    assert verdict(tmp_path, "def score(response): return 0.5", threshold=0.5).parts == {"correct": 1.0}


def test_the_setting_names_the_function(tmp_path: Path) -> None:
    both = "def score(response): return 0\ndef scores(items): return [1 for _ in items]"
    assert verdict(tmp_path, both).reward == 0
    assert verdict(tmp_path, both, function="scores").reward == 1


SHOWS = "def score(response, messages): raise ValueError((response, messages))"


def test_messages_are_all_that_followed_the_prompt(tmp_path: Path) -> None:
    """A response alone is one of them; the settings that say what of a response is judged hold for it there too."""
    verifier = loaded(tmp_path, SHOWS, thinking=False)
    episode = [("assistant", "add(2, 2)"), ("tool", "4"), ("assistant", "<think>2 + 2</think>4"), ("tool", "bye")]
    alone, several = verifier.verify_batch(
        [Item("2+2?", "<think>2 + 2</think>4", {}), Item("2+2?", "<think>2 + 2</think>4", {}, (), episode)]
    )
    assert "('4', [{'role': 'assistant', 'content': '4'}])" in str(alone)
    contents = [("assistant", "add(2, 2)"), ("tool", "4"), ("assistant", "4"), ("tool", "bye")]
    assert str(("4", [{"role": role, "content": content} for role, content in contents])) in str(several)


@pytest.mark.parametrize("reference", ["4", 4, 4.5, True, None, ["4", {"a": 1}], {"a": {"b": [1]}}])
def test_a_reference_is_any_value(tmp_path: Path, reference: Any) -> None:
    source = f"def score(response, reference): return reference == {reference!r}"
    assert verdict(tmp_path, source, reference).reward == 1


def test_a_reference_of_several_keys_is_a_dict_and_none_is_none(tmp_path: Path) -> None:
    verifier = loaded(tmp_path, "def score(response, reference): return {'reward': 1, 'n': len(reference or ())}")
    two, none = judged(verifier, {"answer": 4, "unit": "m"}, {})
    assert [v.parts["n"] for v in (two, none) if isinstance(v, Verdict)] == [2, 0]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("int('x')", r"mine\.py:2: score raises ValueError: invalid literal .* \(reference: '4'\)$"),
        ("reference['answer']", r"mine\.py:2: score raises TypeError: string indices"),
        ("1 / 0", r"mine\.py:2: score raises ZeroDivisionError"),
        ("raise_(SystemExit(3))", r"mine\.py:2: score raises SystemExit: 3"),
        ("raise_(KeyboardInterrupt())", r"mine\.py:2: score raises KeyboardInterrupt"),
        ("raise_(Silent())", r"mine\.py:2: score raises Silent: \(its message cannot be shown\)"),
        ("raise_(ValueError('a\\nb' * 10**6))", r"mine\.py:2: score raises ValueError: a ba b"),
        ("raise_(ValueError('\\ud800'))", r"mine\.py:2: score raises ValueError: \\ud800"),
        ("score(response, reference)", r"mine\.py:2: score raises RecursionError"),
        ("float('nan')", r"mine\.py:1: score returns nan; expected a finite number"),
        ("float('inf')", r"mine\.py:1: score returns inf"),
        ("10**400", r"mine\.py:1: score returns 1000"),
        ("None", r"mine\.py:1: score returns None"),
        ("'0.5'", r"mine\.py:1: score returns '0\.5'"),
        ("b'1'", r"mine\.py:1: score returns b'1'"),
        ("[1.0]", r"mine\.py:1: score returns \[1\.0\]"),
        ("1j", r"mine\.py:1: score returns 1j"),
        ("(x for x in 'ab')", r"mine\.py:1: score returns <generator"),
        ("Silent()", r"mine\.py:1: score returns <.*Silent"),
        ("{}", r'mine\.py:1: score returns \{\}; expected "reward" among its keys'),
        ("{'correct': 1}", r"""mine\.py:1: score returns \{'correct': 1\}; expected "reward" among"""),
        ("{'reward': 1, 'style': None}", r"mine\.py:1: score returns style = None"),
        ("{'reward': 1, 7: 1}", r"mine\.py:1: score returns 7 = 1"),
        ("{'reward': float('-inf')}", r"mine\.py:1: score returns reward = -inf"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_fault_of_the_function_names_file_line_and_value(tmp_path: Path, kind: str, body: str, text: str) -> None:
    source = f"""{kind} score(response, reference):
    return {body}

def raise_(error):
    raise error

class Silent(Exception):
    def __str__(self):
        raise RuntimeError
    __repr__ = __str__
"""
    if "raise_" in body:
        text = text.replace(":2:", ":5:")
    if kind == "async def" and body.startswith("score("):
        text = r"mine\.py:1: score returns <coroutine"
    (fault,) = judged(loaded(tmp_path, source), {"answer": "4"})
    assert isinstance(fault, Exception)
    with pytest.raises(type(fault), match=text):
        raise fault
    assert type(fault).__name__ == "VerifierError"
    assert len(str(fault)) < 1500
    str(fault).encode()


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("[1.0]", r"scores returns 1 values; expected a list of 2"),
        ("None", r"scores returns None; expected a list of 2"),
        ("1 / 0", r"mine\.py:1: scores raises ZeroDivisionError"),
    ],
)
def test_a_batch_that_fails_fails_as_a_whole(tmp_path: Path, kind: str, body: str, text: str) -> None:
    verifier = loaded(tmp_path, f"{kind} scores(items): return {body}")
    with pytest.raises(Exception, match=text):
        judged(verifier, {"answer": 1}, {"answer": 2})


@pytest.mark.parametrize(
    "source",
    [
        "async def score(response, reference): return 1 / reference",
        "def scores(items): return [1 / i['reference'] if i['reference'] else None for i in items]",
    ],
)
def test_one_fault_in_a_batch_is_one_fault(tmp_path: Path, source: str) -> None:
    good, bad, other = judged(loaded(tmp_path, source), {"answer": 2}, {"answer": 0}, {"answer": 4})
    assert [v.reward for v in (good, other) if isinstance(v, Verdict)] == [0.5, 0.25]
    assert isinstance(bad, Exception)


def test_coroutines_wait_together(tmp_path: Path) -> None:
    """Each goes on when the last has come: one after the other they would wait for ever."""
    source = """import asyncio
here = []
async def score(response, reference):
    here.append(reference)
    while len(here) < 3:
        await asyncio.sleep(0)
    return reference
"""
    given = judged(loaded(tmp_path, source), *({"answer": n} for n in range(3)))
    assert [v.reward for v in given if isinstance(v, Verdict)] == [0, 1, 2]


def test_a_reference_that_the_function_refuses_is_refused(tmp_path: Path) -> None:
    source = "from shared.errors import InvalidInputError\ndef score(response): raise InvalidInputError('no')"
    (refused,) = judged(loaded(tmp_path, source), {})
    assert isinstance(refused, InvalidInputError)


def test_modules_beside_the_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "beside_mine.py").write_text("VALUE = 0.25")
    assert verdict(tmp_path, "import beside_mine\ndef score(response): return beside_mine.VALUE").reward == 0.25


FAULTY = [
    ("def score(response:\n    pass", r"mine\.py:1: SyntaxError: "),
    ("def score(response):\n  x = 1\n    y = 2", r"mine\.py:3: IndentationError: "),
    ("x = '\0'", r"mine\.py: .*null bytes"),
    ("\nimport nowhere_at_all", r"mine\.py:2: loading it raises ModuleNotFoundError: No module named"),
    ("\n\n1 / 0", r"mine\.py:3: loading it raises ZeroDivisionError"),
    ("raise SystemExit(0)", r"mine\.py:1: loading it raises SystemExit: 0"),
    ("", r"mine\.py has no function 'score'; define it, as def score\(response"),
    ("def scored(response): pass", r"no function 'score'; it has scored; did you mean function = 'scored'"),
    ("score = 3", r"mine\.py: score is 3; expected a function"),
    ("def score(): return 1", r"mine\.py:1: score has no parameter 'response'; its parameters are given by name"),
    ("\ndef score(answer, truth): return 1", r"mine\.py:2: score needs a parameter 'answer'; its parameters are"),
    ("def score(response, /): return 1", r"mine\.py:1: score needs a parameter 'response'"),
    ("def score(items, response): return 1", r"mine\.py:1: score needs a parameter 'items'"),
    ("def score(items, more): return 1", r"mine\.py:1: score needs a parameter 'more'"),
]


@pytest.mark.parametrize(("source", "text"), FAULTY)
def test_a_file_that_cannot_be_used_says_why_before_anything_is_judged(tmp_path: Path, source: str, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text) as raised:
        loaded(tmp_path, source)
    assert "\n" not in str(raised.value)


def test_the_check_says_the_same_and_runs_nothing_here(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    file = tmp_path / "mine.py"
    file.write_text(f"import os\nopen({str(mark)!r}, 'a').write(f'{{os.getpid()}} ')\ndef score(): pass")
    verifier = FileVerifier(FileSettings(file=file))
    with pytest.raises(InvalidInputError, match=r"mine\.py:3: score has no parameter 'response'"):
        verifier.check()
    assert [int(pid) != os.getpid() for pid in mark.read_text().split()] == [True]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "import os\nprint('so long')\nos._exit(7)",
            r"that loads it ends with 7, and had printed: so long",
        ),
        ("import time\ntime.sleep(600)", r"mine\.py is not loaded within start_seconds = 1; raise it in this table"),
        ("print('x' * (2 << 20))", r"mine\.py:1: loading it raises PrintedTooMuchError"),
    ],
)
def test_a_file_that_does_not_end_well_is_ended(tmp_path: Path, source: str, text: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(InvalidInputError, match=text):
        FileVerifier(FileSettings(file=file, start_seconds=1 if "sleep" in source else 60)).check()


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"file is .*nowhere\.py: No such file"):
        FileVerifier(FileSettings(file=tmp_path / "nowhere.py"))
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="no text in UTF-8"):
        FileVerifier(FileSettings(file=tmp_path / "binary.py"))
    (tmp_path / "large.py").write_bytes(b"#" * (2 << 20))
    with pytest.raises(InvalidInputError, match="2097152 bytes; expected"):
        FileVerifier(FileSettings(file=tmp_path / "large.py"))


def test_the_version_follows_the_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    versions = []
    for value in (1, 2, 1):
        file.write_text(f"def score(response): return {value}")
        versions.append(FileVerifier(FileSettings(file=file)).judged_by)
    assert versions[0] == versions[2] != versions[1]
