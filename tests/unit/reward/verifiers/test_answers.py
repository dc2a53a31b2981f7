"""Where the answer stands: thoughts, tags, boxes, statements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.verifiers import answers
from services.reward.verifiers.thoughts import without


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        # Statements, and the emphasis around and within them
        ("Final Answer: **73**", "73"),
        ("The answer is **73**.", "73"),
        ("**Answer: 73**", "73"),
        ("**Answer:** 73", "73"),
        ("**Final Answer**: 73", "73"),
        ("**Final Answer**\n\n73", "73"),
        ("__Answer:__ 73", "73"),
        ("The final answer is: $73$", "73"),
        ("The answer is\n$$73$$", "73"),
        ("Answer:\n73", "73"),
        ("Answer = 73", "73"),
        ("The answer should be `73`.", "73"),
        ("The answer is therefore 73.", "73"),
        ("So\n#### 73", "73"),
        ("The answer is 2**3.", "2**3"),
        ("Answer:", None),
        # Tags
        ("<answer>73</answer>", "73"),
        ("<think>72?</think><answer>73</answer>", "73"),
        ("<think>72?</think>\n<answer>\n73\n</answer>", "73"),
        ("<answer>72</answer> No: <answer>73</answer>", "73"),
        (r"<answer>So \boxed{73}</answer>", "73"),
        (r"\boxed{72} <answer>73</answer>", "73"),
        ("<answer>The answer is 73.</answer>", "73"),
        ("<ANSWER>73</ANSWER>", "73"),
        ("<answer>73", None),
        ("<answer>72</answer><answer>73", None),
        # Thoughts
        ("<think>72</think>73", "73"),
        ("72</think>73", "73"),
        ("<thinking>72</thinking>73", "73"),
        ("<reasoning>72</reasoning>73", "73"),
        ("[THINK]72[/THINK]73", "73"),
        ("◁think▷72◁/think▷73", "73"),
        ("<think>71</think><think>72</think>73", "73"),
        ("<think>73", None),
        ("72<think>73", None),
        ('print("</think>")', 'print("</think>")'),
        ('<think>I end with "</think>", says he: 72</think>73', "73"),
        # Boxes
        (r"\boxed{}", None),
        (r"\boxed{-2} \quad \text{and} \quad \boxed{1}", "-2,1"),
        (r"\boxed{-2}\text{ or }\boxed{1}", "-2,1"),
        (r"\boxed{-2}, \text{and } \boxed{1}", "-2,1"),
        (r"\boxed{2} and then, after some thought, \boxed{1}", "1"),
        (r"$\boxed 73$", "73"),
        (r"I write \boxed for emphasis. The answer is 73", "73"),
        (r"\boxed{" * 9 + "73" + "}" * 9, "73"),
        (r"\boxed{" * 400 + "73" + "}" * 400, None),
        (r"\boxed{" * 400, None),
    ],
)
def test_final_answers(response: str, answer: str | None) -> None:
    assert answers.final(response, whole=100) == answer


PIECES = st.sampled_from([*'\\{}<>/ \n$*.,5"`', "boxed", "answer is", "</think>", "<think>", "<answer>", r"\boxed{"])


@given(st.lists(PIECES).map("".join))
def test_any_text_has_a_final_answer_or_none(text: str) -> None:
    assert answers.final(text, whole=100) != ""
    without(text)


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b", "\ufeff\u2060", "\u3164", "\u2800", "\x00"])
def test_what_nobody_sees_is_blank(text: str) -> None:
    assert answers.is_blank(text)
    assert not answers.is_blank(f"{text}.{text}")
