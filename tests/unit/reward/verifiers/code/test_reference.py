"""References in our own form, and rows of data sets as they are."""

import base64
import json
import pickle
import zlib
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from services.reward.verifiers.code.reference import read
from services.reward.verifiers.code.rows import Calls, Case, Cases, PythonTests
from shared.errors import InvalidInputError

STDIN = Cases([Case("1 2\n", ("3\n",))], "tokens")
CALL = Calls("add", [([1, 2], [3])])
LCB_STDIN = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
LCB_CALL = [{"input": "1\n2", "output": "3", "testtype": "functional"}]


@pytest.mark.parametrize(
    ("row", "task"),
    [
        pytest.param({"inputs": ["1 2\n"], "outputs": ["3\n"]}, STDIN, id="PRIME, inside"),
        pytest.param({"input_output": '{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}'}, STDIN, id="APPS"),
        pytest.param(
            {"input_output": {"inputs": [["1", "2"]], "outputs": [["3"]]}, "starter_code": ""},
            Cases([Case("1\n2", ("3",))], "tokens"),
            id="APPS with lines in lists",
        ),
        pytest.param(
            {"input_output": '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}', "starter_code": "def add("},
            CALL,
            id="TACO, a function",
        ),
        pytest.param(
            {"inputs": [[1, 2]], "outputs": [[3]], "fn_name": "add"},
            Calls("add", [([1, 2], [[3], 3])]),
            id="APPS, a wrapped value",
        ),
        pytest.param(
            {"reward_model": {"style": "rule", "ground_truth": '{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}'}},
            STDIN,
            id="PRIME",
        ),
        pytest.param({"ground_truth": json.dumps(LCB_STDIN)}, STDIN, id="DeepCoder"),
        pytest.param(
            {"ground_truth": json.dumps([{**LCB_CALL[0], "metadata": {"func_name": "add"}}])},
            CALL,
            id="DeepCoder, a function",
        ),
        pytest.param({"public_test_cases": json.dumps(LCB_STDIN), "metadata": "{}"}, STDIN, id="LiveCodeBench"),
        pytest.param(
            {
                "public_test_cases": json.dumps(LCB_CALL),
                "private_test_cases": json.dumps(LCB_CALL),
                "metadata": '{"func_name": "add"}',
                "starter_code": "class Solution:",
            },
            Calls("add", [([1, 2], [3])] * 2),
            id="LiveCodeBench, a function",
        ),
        pytest.param(
            {"test_cases": [{"type": "stdin_stdout", "input": "1 2\n", "output": "3\n"}]}, STDIN, id="SYNTHETIC-1"
        ),
        pytest.param(
            {"public_tests": {"input": ["1 2\n"], "output": ["3\n"]}, "private_tests": {"input": [], "output": []}},
            STDIN,
            id="CodeContests",
        ),
        pytest.param(
            {"test_list": ["assert f(1)"], "test_setup_code": "", "challenge_test_list": [], "code": "def f(x): ..."},
            PythonTests(["assert f(1)"]),
            id="MBPP",
        ),
        pytest.param(
            {"test_list": ["assert f(pi)"], "test_imports": ["from math import *"]},
            PythonTests(["from math import *\nassert f(pi)"]),
            id="MBPP, sanitized",
        ),
        pytest.param({"test_cases": ["assert f(1)"]}, PythonTests(["assert f(1)"]), id="AceCode"),
        pytest.param(
            {"test": "from solution import f\n\ndef test_f():\n    assert f(1)"},
            PythonTests(["from solution import f\n\ndef test_f():\n    assert f(1)"]),
            id="KodCode",
        ),
        pytest.param(
            {"test": "def check(candidate):\n    assert candidate(1)", "entry_point": "f", "prompt": "def f(x):\n"},
            PythonTests(["def check(candidate):\n    assert candidate(1)\n\ncheck(candidate)\n"], "f", "def f(x):\n"),
            id="HumanEval",
        ),
        pytest.param(
            {"test": "def check(candidate):\n    assert candidate(1)", "entry_point": "Solution().f"},
            PythonTests(["def check(candidate):\n    assert candidate(1)\n\ncheck(candidate)\n"], "Solution().f"),
            id="LeetCodeDataset",
        ),
    ],
)
def test_rows_of_data_sets(row: dict[str, Any], task: Any) -> None:
    assert read(row) == task
    through_protobuf = json_format.MessageToDict(json_format.ParseDict(row, struct_pb2.Struct()))
    assert read(through_protobuf) == task


def test_several_outputs_and_a_checker() -> None:
    task = read({"cases": [{"input": "", "output": ["a", "b"]}, {"input": ""}], "checker": "def check(*_): return 1"})
    assert task == Cases([Case("", ("a", "b")), Case("", ())], checker="def check(*_): return 1")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"inputs": ["1"], "outputs": []}, "it has 1 inputs and 0 outputs"),
        ({"inputs": ["1"], "outputs": ["1"], "tests": ["assert f()"]}, "it has tests and inputs"),
        ({"input_output": "{"}, "JSONDecodeError"),
        ({"input_output": "[" * 100_000}, "RecursionError"),
        ({"ground_truth": "42"}, "expected {'cases'"),
        (
            {
                "public_test_cases": "[]",
                "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps("[]"))).decode(),
            },
            "packed with pickle, which is never read",
        ),
        ({"public_test_cases": json.dumps(LCB_CALL)}, "names no function"),
        ({"cases": [{"input": ""}]}, "KeyError: 'output'"),
        ({"cases": [{"input": "", "output": []}]}, "output is an empty list"),
        ({"cases": [{"input": "", "output": ""}], "comparison": "eyes"}, "comparison is 'eyes'; known: lines, tokens"),
        ({"cases": [{"input": ""}], "checker": "def ("}, "a checker that is no Python"),
        ({"cases": [{"input": ""}], "checker": "def judge(): pass"}, "a checker that does not define check"),
        ({"cases": [{"input": "x" * (35 << 20), "output": ""}] * 2}, "73400320 bytes for the program to read; at most"),
        ({"tests": "x" * (70 << 20)}, "73400320 bytes for the program to read; at most 67108864 (64 MiB)"),
        ({"tests": "assert 1 == 1"}, "tests that never call the program"),
        ({"tests": "x = 3\nassert x + abs(x) == 6"}, "tests that never call the program"),
        ({"tests": "def test_f(x=1):\n    assert x"}, "tests that never call the program"),
        ({"tests": "def check(candidate):\n    assert candidate(1) == 2"}, "give entry_point"),
        ({"tests": "assert f()", "entry_point": "f("}, "entry_point = 'f('"),
        ({"tests": ["assert f()"], "entry_point": 3}, "entry_point is 3"),
    ],
)
def test_what_is_refused(row: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(row)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
