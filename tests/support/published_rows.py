"""Rows in the forms that data sets are published in, written for the tests.

Long because there is a form for every preset.
"""

import json
from dataclasses import dataclass
from typing import Any

SOLVE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    '$Answer (without quotes).\n\n{}\n\nRemember to put your answer on its own line after "Answer:".'
)


def verl(problem: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "data_source": "math_dapo", "prompt": [{"role": "user", "content": problem}], "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"}, **more,
    }  # fmt: skip


def eurus(user: str, ability: str, truth: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": "When tackling..."}, {"role": "user", "content": user}]
    return {
        "data_source": "numina_olympiads", "prompt": messages, "ability": ability,
        "reward_model": {"ground_truth": truth, "style": "rule"}, "extra_info": {"index": 0, "split": "dummy"},
    }  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A program that passes all tests of a row, and how many they are."""

    source: str
    tests: int


# preset: rows, and with each the key of its problem and a response that is right.
ROWS: dict[str, list[tuple[dict[str, Any], str, str | Program]]] = {
    "gsm8k": [
        (
            {"question": "Janet's ducks?", "answer": "16 - 3 = <<16-3=13>>13\n#### 1,018"},
            "janet's ducks?",
            "so\n#### 1018",
        ),
        ({"question": "Cost?", "answer": "It is\n#### -3"}, "cost?", "The answer is -3."),
    ],
    "math": [
        (
            {
                "problem": "Compute $a$.",
                "level": "Level 3",
                "type": "Algebra",
                "solution": "First \\boxed{no}, then $\\boxed{\\frac{1}{\\sqrt{2}}}$.",
            },
            "compute $a$.",
            "\\boxed{\\frac{\\sqrt2}{2}}",
        ),
        ({"problem": "Two?", "solution": "\\boxed{2", "answer": "2", "unique_id": "a/b.json"}, "two?", "\\boxed{2}"),
    ],
    "dapo": [
        (
            verl(SOLVE.format("In a triangle\n\nfind x."), "34", extra_info={"index": 9}),
            "in a triangle find x.",
            "Answer: 34",
        ),
        (
            verl("Ducks? Let's think", "72", extra_info={"index": 0, "question": "Ducks?", "split": "train"}),
            "ducks?",
            "#### 72",
        ),
        (
            {"prompt": "Plain text?", "solution": "5", "data_source": "x", "extra_info": None},
            "plain text?",
            "\\boxed{5}",
        ),
    ],
    "prime": [
        (
            eurus("Find the limit.\n\nPresent the answer in \\boxed{}.", "math", "\\frac12"),
            "find the limit. present the answer in \\boxed{}.",
            "\\boxed{0.5}",
        ),
        (
            eurus("Write Python", "code", json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["1\n", "2\n"]})),
            "write python",
            Program("print(int(input()))", tests=2),
        ),
        (
            {"prompt": "SYNTHETIC maths", "task_type": "verifiable_math", "verification_info": '{"ground_truth": "7"}'},
            "synthetic maths",
            "\\boxed{7}",
        ),
        (
            {
                "prompt": "SYNTHETIC code",
                "task_type": "verifiable_code",
                "verification_info": json.dumps(
                    {
                        "language": "python",
                        "test_cases": [{"fn_name": None, "input": "1", "output": "2", "type": "stdin_stdout"}],
                    }
                ),
            },
            "synthetic code",
            Program("print(int(input()) + 1)", tests=1),
        ),
    ],
    "openr1": [
        (
            {
                "problem": "Solve.",
                "solution": "...",
                "answer": "v_{R} = 4 \\text{km/h}",
                "question_type": "math-word-problem",
                "uuid": "1",
            },
            "solve.",
            "\\boxed{v_R = 4 \\text{km/h}}",
        ),
        (
            {"problem": "And?", "solution": "...", "answer": "3", "question_type": "MCQ", "uuid": "2"},
            "and?",
            "\\boxed{3}",
        ),
    ],
    "livecodebench": [
        (
            {
                "question_content": "Stdin task",
                "starter_code": "",
                "question_id": "abc301_a",
                "metadata": "{}",
                "public_test_cases": json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}]),
                "private_test_cases": json.dumps([{"input": "3", "output": "4", "testtype": "stdin"}]),
            },
            "stdin task",
            Program("print(int(input()) + 1)", tests=2),
        ),
        (
            {
                "question_content": "Function task",
                "starter_code": "class Solution:\n    def f(self, a):",
                "question_id": "2",
                "public_test_cases": json.dumps([{"input": "[1]", "output": "2", "testtype": "functional"}]),
                "private_test_cases": "[]",
                "metadata": '{"func_name": "f"}',
            },
            "function task",
            Program("class Solution:\n    def f(self, a):\n        return a[0] + 1", tests=1),
        ),
    ],
    "taco": [
        (
            {
                "question": "Read",
                "starter_code": "",
                "difficulty": "EASY",
                "solutions": "[]",
                "input_output": json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]}),
            },
            "read",
            Program("print(int(input()) + 1)", tests=1),
        ),
        (
            {
                "question": "Call",
                "starter_code": "def f(a):",
                "solutions": "[]",
                "input_output": json.dumps({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[2], [3]]}),
            },
            "call",
            Program("def f(a):\n    return a + 1", tests=2),
        ),
    ],
    "apps": [
        (
            {
                "problem_id": 1,
                "question": "Read",
                "starter_code": "",
                "difficulty": "interview",
                "url": "u",
                "input_output": json.dumps({"inputs": ["1\n", "5\n"], "outputs": ["2\n", "6\n"]}),
            },
            "read",
            Program("print(int(input()) + 1)", tests=2),
        ),
        (
            {
                "problem_id": 2,
                "question": "Call",
                "starter_code": "def f(a):",
                "difficulty": "introductory",
                "input_output": json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [2]}),
            },
            "call",
            Program("def f(a):\n    return a + 1", tests=1),
        ),
    ],
    "code_contests": [
        (
            {
                "name": f"{i}_A. Sum",
                "description": f"Sum {i}",
                "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
                "private_tests": {"input": ["2 2\n"], "output": ["4\n"]},
                "generated_tests": {"input": [], "output": []},
            },
            f"sum {i}",
            Program("print(sum(map(int, input().split())))", tests=2),
        )
        for i in range(2)
    ],
    "ifeval": [
        (
            {
                "key": 1000,
                "prompt": "Write 3 words without commas.",
                "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
                "kwargs": [{}, {"relation": "at least", "num_words": 3, "keywords": None}],
            },
            "write 3 words without commas.",
            "one two three",
        ),
        (
            {
                "key": 1001,
                "prompt": "JSON, please.",
                "instruction_id_list": ["detectable_format:json_format"],
                "kwargs": [{}],
            },
            "json, please.",
            '```json\n{"a": 1}\n```',
        ),
    ],
    "multiple_choice": [
        (
            {"question": "Capital?", "choices": ["Rome", "Paris"], "answer": 1, "subject": "geography"},
            "capital? paris rome",
            "Answer: B",
        ),
        (
            {
                "id": "MCAS_1",
                "question": "Star?",
                "choices": {"text": ["Sun", "Moon"], "label": ["1", "2"]},
                "answerKey": "1",
            },
            "star? moon sun",
            "Answer: A",
        ),
        (
            {
                "question_stem": "Stem?",
                "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
                "answerKey": "C",
            },
            "stem? x y z",
            "C",
        ),
        (
            {"question": "Pro?", "options": list("abcdefghij"), "answer": "J", "answer_index": 9},
            "pro? a b c d e f g h i j",
            "Answer: J",
        ),
    ],
}
ROWS |= {"verl": ROWS["dapo"], "eurus": ROWS["prime"]}
