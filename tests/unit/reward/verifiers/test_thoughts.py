"""What of a response is judged: with its thoughts or without, with its special tokens or without."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.verifiers.base import Item, Verifier
from services.reward.verifiers.registry import make_verifiers
from services.reward.verifiers.thoughts import text_of, without


@pytest.mark.parametrize(
    ("response", "rest"),
    [
        ("5", "5"),
        ("<think>4</think>5", "5"),
        ("4</think>5", "5"),
        ("<think>4", ""),
        ("4<think>5", ""),
        ("[THINK]4[/THINK]5", "5"),
        ("◁think▷4◁/think▷5", "5"),
        ("<think>3</think>4<think>4</think>5", "45"),
        ('print("</think>")', 'print("</think>")'),
        ("```\n</think>\n```\n5", "\n```\n5"),  # a draft in thoughts that was left open
        ("a\n```\nx = '<think>'\n```\n5", "a\n```\nx = '<think>'\n```\n5"),
        ("<|channel|>analysis<|message|>4<|end|><|start|>assistant<|channel|>final<|message|>5<|return|>", "5"),
        ("<|start|>assistant<|channel|>final<|message|>5", "5"),
        ("<|channel|>analysis<|message|>4<|end|>", ""),
        ("<|channel|>analysis<|message|>It is 5", ""),
        ("<|channel|>commentary to=tool<|message|>{}<|call|>", ""),
        ("I write <|channel|>final<|message|>5", "I write <|channel|>final<|message|>5"),
    ],
)
def test_what_is_no_thought(response: str, rest: str) -> None:
    assert without(response) == rest


@pytest.mark.parametrize("prompt", ["Q: 2+3?<think>", "Q: 2+3?\n<think>\n", "Q[THINK]"])
def test_a_prompt_may_have_opened_the_thoughts(prompt: str) -> None:
    closing = "[/THINK]" if "[" in prompt else "</think>"
    assert without(f"4{closing}5", prompt) == "5"
    assert without("It is 5", prompt) == ""
    assert without("It is 5", f"{prompt}</think>") == "It is 5"


HARMONY = "analysis4assistantfinal5"
SPECIALS = [
    (0, "<|channel|>"),
    (8, "<|message|>"),
    (9, "<|end|>"),
    (9, "<|start|>"),
    (18, "<|channel|>"),
    (23, "<|message|>"),
    (24, "<|return|>"),
]


@pytest.mark.parametrize(
    ("response", "specials", "thinking", "special", "text"),
    [
        ("5", [(1, "<|im_end|>")], True, False, "5"),
        ("5", [(1, "<|im_end|>")], True, True, "5<|im_end|>"),
        ("<think>4</think>5", [(17, "</s>")], False, True, "5</s>"),
        ("45", [(0, "[THINK]"), (1, "[/THINK]"), (2, "</s>")], True, False, "45"),
        ("45", [(0, "[THINK]"), (1, "[/THINK]"), (2, "</s>")], False, False, "5"),
        ("45", [(0, "[THINK]"), (1, "[/THINK]"), (2, "</s>")], True, True, "[THINK]4[/THINK]5</s>"),
        ("45", [(0, "[THINK]"), (1, "[/THINK]"), (2, "</s>")], False, True, "5</s>"),
        ("45", [(1, "[/THINK]")], False, False, "5"),
        ("45", [(0, "[THINK]")], False, False, ""),
        (HARMONY, SPECIALS, True, False, HARMONY),
        (HARMONY, SPECIALS, False, False, "5"),
        (HARMONY[:9], SPECIALS[:3], False, False, ""),
        (HARMONY, SPECIALS, True, True, "<|channel|>analysis<|message|>4<|end|><|start|>assistant<|channel|>final"
         "<|message|>5<|return|>"),
        ("a b", [(1, "<pad>"), (99, "</s>")], False, False, "a b"),
    ],
)  # fmt: skip
def test_special_tokens_are_put_back_to_find_what_is_thought(
    response: str, specials: list[tuple[int, str]], thinking: bool, special: bool, text: str
) -> None:
    assert text_of(response, "", specials, with_thinking=thinking, with_special_tokens=special) == text


PIECES = [
    "<think>",
    "</think>",
    "[THINK]",
    "```\n",
    "<|channel|>",
    "final",
    "<|message|>",
    "a",
    '"',
    "\ufde0",
    "\ufde1",
]


@given(
    st.lists(st.sampled_from(PIECES)).map("".join),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(PIECES[:7]))),
    st.booleans(),
    st.booleans(),
)
def test_any_response_has_a_text(response: str, specials: list[tuple[int, str]], thinking: bool, special: bool) -> None:
    text = text_of(response, "<think>", specials, with_thinking=thinking, with_special_tokens=special)
    assert len(text) <= len(response) + sum(len(token) for _, token in specials) + len("<think>")
    if specials and not special and not thinking:
        assert "\ufde0" not in text


@pytest.mark.parametrize(
    ("kind", "reference", "settings", "correct"),
    [
        ("exact", {"answer": "5"}, {}, 0.0),
        ("exact", {"answer": "5"}, {"thinking": False}, 1.0),
        ("exact", {"answer": "<think>4</think>5<|im_end|>"}, {"special_tokens": True}, 1.0),
        ("exact", {"answer": "5"}, {"part": "answer"}, 1.0),
        ("regex", {"pattern": "5"}, {"thinking": False}, 1.0),
        ("math", {"answer": "5"}, {}, 1.0),
        ("math", {"answer": "5"}, {"thinking": True}, 0.0),
        ("choice", {"answer": "A"}, {}, 0.0),
        ("json_schema", {"schema": {"const": 5}}, {}, 1.0),
        ("countdown", {"numbers": [5], "target": 5}, {}, 1.0),
        ("code", {"cases": [{"input": "", "output": "5"}]}, {}, 0.0),
        ("format", {}, {}, 1.0),
        ("format", {}, {"thinking": False}, 0.0),
    ],
)
def test_every_kind_judges_the_text_that_its_settings_say(
    kind: str, reference: dict[str, Any], settings: dict[str, Any], correct: float
) -> None:
    verifier = make_verifiers({"it": {"kind": kind, **settings}})["it"]
    assert isinstance(verifier, Verifier)
    verifier.start()
    try:
        verdict = verifier.verify(Item("2+3?", "<think>4</think>5", reference, [(17, "<|im_end|>")]))
    finally:
        verifier.close()
    assert verdict.parts["correct"] == correct
