"""Three turns of a conversation by templates of the forms that models have: sampled tokens stay as they are."""

from collections.abc import Sequence

import pytest

from shared.errors import InvalidInputError
from tests.support.chats import (
    CHATML,
    FORMS,
    HARMONY,
    HARMONY_TOOLS,
    LLAMA,
    QUESTION,
    WITHOUT_THOUGHTS,
    chat_of,
    encoded,
)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("ends", [True, False], ids=["ended", "cut"])
def test_three_turns_keep_the_tokens_that_were_read_and_sampled(name: str, ends: bool) -> None:
    form = FORMS[name]
    chat, tokenizer = chat_of(form.template)
    messages = [QUESTION]
    ids = tokenizer.encode(chat.render(messages), add_special_tokens=False)
    for content, answer in (("look(42)", "42é"), ("look(é)", "no"), ("It is 42.", "thanks")):
        sampled = encoded(tokenizer, form.starts + content + (form.end if ends else ""))
        messages.append({"role": "assistant", "content": content})
        added = [{"role": form.tool, "content": answer}]
        following = chat.next_turn(messages, sampled, added)
        assert following is not None
        messages += added
        ids = ids + sampled + following
        assert tokenizer.decode(ids, skip_special_tokens=False) == chat.render(messages)
    four, two = tokenizer.convert_tokens_to_ids(["4", "2"])
    assert [ids[i : i + 2] for i in range(len(ids))].count([four, two]) == 2  # as sampled; what a tool says is merged
    assert ids.count(tokenizer.convert_tokens_to_ids("42")) == 1


def turn(template: str, said: str, content: str, *added: dict[str, str]) -> Sequence[int] | None:
    chat, tokenizer = chat_of(template)
    messages = [QUESTION, {"role": "assistant", "content": content}]
    return chat.next_turn(messages, encoded(tokenizer, said), added)


def test_a_template_that_rewrites_earlier_turns_is_found_out() -> None:
    thought = "<think>6 * 7</think>42"
    tool, user = {"role": "tool", "content": "ok"}, {"role": "user", "content": "sure?"}
    assert turn(WITHOUT_THOUGHTS, f"{thought}<|im_end|>", thought, tool) is not None
    assert turn(WITHOUT_THOUGHTS, f"{thought}<|im_end|>", thought, user) is None
    assert turn(WITHOUT_THOUGHTS, f"{thought}<|im_end|>", thought, tool, user) is None
    assert turn(CHATML, f"{thought}<|im_end|>", thought, user) is not None
    assert turn(CHATML, f"{thought}<|im_end|>", "42", user) is None  # the caller left the thoughts out
    assert turn(LLAMA, "42\n<|eot_id|>", "42\n", user) is None  # trimmed
    assert turn(HARMONY, "<|channel|>final<|message|>42<|return|>", "42", user) is None


def appended(template: str, said: str, *added: dict[str, str], calls: Sequence[str] = ()) -> str:
    chat, tokenizer = chat_of(template)
    ids = chat.appended(encoded(tokenizer, said), added, calls)
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return text


def test_what_a_template_writes_for_new_messages_alone() -> None:
    tool, user = {"role": "tool", "content": "ok"}, {"role": "user", "content": "sure?"}
    new = "\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    assert appended(WITHOUT_THOUGHTS, "<think>6 * 7</think>42<|im_end|>", user) == new
    assert appended(WITHOUT_THOUGHTS, "<think>6 * 7", user) == "<|im_end|>" + new, "a turn that was cut is ended"
    header = "<|start_header_id|>"
    assert appended(LLAMA, "42\n<|eot_id|>", user) == (
        f"{header}user<|end_header_id|>\n\nsure?<|eot_id|>{header}assistant<|end_header_id|>\n\n"
    )
    final = "<|channel|>final<|message|>42"
    after = "<|start|>user<|message|>sure?<|end|><|start|>assistant"
    assert appended(HARMONY, f"{final}<|return|>", user) == after, "its own end stands for that of the template"
    assert appended(HARMONY, f"{final}<|end|>", user) == after
    assert appended(HARMONY, final, user) == f"<|end|>{after}"
    call = " to=functions.look<|channel|>commentary json<|message|>{}<|call|>"
    assert appended(HARMONY_TOOLS, call, tool, calls=["look"]) == (
        '<|start|>functions.look to=assistant<|channel|>commentary<|message|>"ok"<|end|><|start|>assistant'
    )
    answer = {"role": "user", "content": "answer0answer"}
    assert appended(CHATML, "42<|im_end|>", answer) == new.replace("sure?", "answer0answer"), "whatever they say"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (HARMONY_TOOLS, "no call before the output"),
        (
            "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
            "leaves out what",
        ),
    ],
)
def test_a_template_that_cannot_go_on_is_refused(template: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        appended(template, "42", {"role": "tool", "content": "ok"})
