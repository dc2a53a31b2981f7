"""Known forms of data sets: what a source with `preset = NAME` says where its table says nothing.

Data only: the keys are those of a table [[data.train]] or [[data.eval]]. Where a form is published with different
columns, an expression takes those that are there.
"""

from collections.abc import Mapping
from typing import Any

_BOXED = "{{ prompt }}\n\nThink step by step, and put the final answer in \\boxed{}."

_PROGRAM = (
    "{{ prompt }}\n\n"
    "{% if starter_code is defined and starter_code %}Complete this code:\n```python\n{{ starter_code }}\n```\n\n"
    "{% else %}Read from stdin and write to stdout.\n\n{% endif %}"
    "Think first, then give the whole program in one ```python block."
)

_IS_CODE = (
    "('code' in (ability | default('', true) | string | lower)"
    " or data_source | default('', true) in ('apps', 'codecontests', 'codeforces', 'taco'))"
)

# Messages are made ready: with what they ask for around the problem. An ability that is neither mathematics nor
# programs is taken for the name of a verifier, so that rows which no verifier here is for are refused by it.
_VERL: Mapping[str, Any] = {
    "columns": {
        "prompt": "prompt",
        "problem": (
            "{% set said = prompt if prompt is string else prompt[-1].content %}"
            "{% if extra_info is mapping and extra_info.question is defined and extra_info.question %}"
            "{{ extra_info.question }}"
            "{% elif said.startswith('Solve the following math problem') %}"
            "{{ said.split('\n\n')[1:-1] | join('\n\n') }}"
            "{% else %}{{ said }}{% endif %}"
        ),
        "reference": (
            "{{ reward_model if " + _IS_CODE + " and reward_model is mapping"
            " else reward_model.ground_truth if reward_model is mapping else solution }}"
        ),
        "verifier": (
            "{{ 'code' if " + _IS_CODE + " else 'math' if not ability | default('', true)"
            " or 'math' in (ability | string | lower) else ability }}"
        ),
    },
}

# Mathematics and programs in one: the row says which it is.
_PRIME: Mapping[str, Any] = {
    "columns": {
        "prompt": "prompt",
        "verifier": (
            "{% set kind = ability | default(task_type) %}"
            "{{ 'code' if 'code' in kind else 'math' if 'math' in (kind | lower) else kind }}"
        ),
        "reference": (
            "{{ (verification_info | from_json if verification_info is defined else reward_model)"
            " if 'code' in (ability | default(task_type))"
            " else (verification_info | from_json if verification_info is defined else reward_model).ground_truth }}"
        ),
    },
}

_CHOICES = (
    "(options if options is defined else choices.text if choices is mapping else choices if choices is defined"
    " else [A, B, C, D] + ([E] if E is defined else []))"
)

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # openai/gsm8k: question, and answer whose last line is "#### 18".
    "gsm8k": {
        "config": "main",
        "columns": {"prompt": "question", "answer": "{{ answer | after('####') | replace(',', '') }}"},
        "prompt": "{{ prompt }}\n\nThink step by step, then give the final answer after ####.",
        "verifier": "math",
    },
    # hendrycks MATH: problem, and solution with the answer in \boxed; MATH-500 has answer beside it.
    "math": {
        "columns": {"prompt": "problem", "answer": "{{ answer if answer is defined else solution | boxed }}"},
        "prompt": _BOXED,
        "verifier": "math",
    },
    # BytedTsinghua-SIA/DAPO-Math-17k and what verl prepares: prompt (messages), reward_model.ground_truth, extra_info;
    # open-r1/DAPO-Math-17k-Processed: prompt (text), solution.
    "dapo": _VERL,
    "verl": _VERL,
    # PRIME-RL/Eurus-2-RL-Data: prompt (messages), ability, reward_model.ground_truth; Prime Intellect's SYNTHETIC-1:
    # prompt (text), task_type, verification_info (JSON).
    "prime": _PRIME,
    "eurus": _PRIME,
    # open-r1/OpenR1-Math-220k: problem, answer, question_type. Proofs have no answer that can be compared.
    "openr1": {
        "columns": {"prompt": "problem", "answer": "answer"},
        "prompt": _BOXED,
        "filter": "question_type | default('') != 'proof'",
        "verifier": "math",
    },
    # livecodebench/code_generation_lite: question_content, starter_code, public_test_cases, private_test_cases and
    # metadata (JSON). Private tests that are packed with pickle are never read: unpack them when you make the file.
    "livecodebench": {
        "columns": {
            "prompt": "question_content",
            "public_test_cases": "public_test_cases",
            "private_test_cases": "private_test_cases",
            "metadata": "metadata",
        },
        "prompt": _PROGRAM,
        "verifier": "code",
    },
    # BAAI/TACO and codeparrot/apps: question, starter_code, input_output (JSON); some rows have no tests.
    "taco": {
        "columns": {"prompt": "question", "input_output": "input_output"},
        "prompt": _PROGRAM,
        "filter": "input_output",
        "verifier": "code",
    },
    "apps": {
        "columns": {"prompt": "question", "input_output": "input_output"},
        "prompt": _PROGRAM,
        "filter": "input_output",
        "verifier": "code",
    },
    # deepmind/code_contests: description, and tables input, output under three names. Some need a picture.
    "code_contests": {
        "columns": {
            "prompt": "description",
            "public_tests": "public_tests",
            "private_tests": "private_tests",
            "generated_tests": "generated_tests",
        },
        "prompt": _PROGRAM,
        "filter": "'<image>' not in description",
        "verifier": "code",
    },
    # google/IFEval and those like it: prompt, instruction_id_list, kwargs.
    "ifeval": {
        "columns": {"prompt": "prompt", "instruction_id_list": "instruction_id_list", "kwargs": "kwargs"},
        "verifier": "instructions",
    },
    # Rows of reasoning_gym: its own preset, which sources reasoning_gym:TASK have without saying so.
    "reasoning_gym": {
        "columns": {"prompt": "question", "reference": "{{ {'dataset': dataset, 'config': config, 'entry': entry} }}"},
        "prompt": "{{ prompt }}\n\nPut your final answer between <answer> and </answer>.",
        "verifier": "reasoning_gym",
    },
    # MMLU (choices, answer from 0; or columns A, B, C, D), MMLU-Pro (options, answer_index), ARC, OpenBookQA,
    # CommonsenseQA (choices.text, choices.label, answerKey).
    "multiple_choice": {
        "columns": {
            "prompt": "{{ question if question is defined else question_stem }}",
            "answer": (
                "{{ (choices.label.index(answerKey) if answerKey is defined"
                " else answer_index if answer_index is defined else answer) | letter }}"
            ),
            "choices": "{{ " + _CHOICES + " }}",
            # Whatever their order: a question such as "Which of these is true?" is another one with other choices.
            "problem": (
                "{{ question if question is defined else question_stem }}\n{{ "
                + _CHOICES
                + " | map('string') | sort | join('\n') }}"
            ),
        },
        "prompt": (
            "{{ prompt }}\n\n{% for choice in " + _CHOICES + " %}{{ loop.index0 | letter }}) {{ choice }}\n{% endfor %}"
            '\nThink, then end with the letter of the right choice, as "Answer: A".'
        ),
        "verifier": "choice",
    },
}
