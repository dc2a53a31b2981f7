"""Three turns of a conversation by templates of the forms that models have: sampled tokens stay as they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shared.models.chat import ChatTemplate

SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>", "<start_of_turn>", "<end_of_turn>",
    "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<think>", "</think>",
]  # fmt: skip

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: thoughts before the last question of the user are left out; those since then stay.
WITHOUT_THOUGHTS = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 < ns.last %}{{ m.content.split('</think>')[-1].lstrip() }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "<s>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "<s>{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|>{{ m.content }}<|end_of_sentence|>"
    "{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
GEMMA = (
    "<s>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# As GPT-OSS's: a final message ends with <|return|> where it is sampled, and with <|end|> where it is read.
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@dataclass(frozen=True)
class Form:
    template: str
    end: str  # with which the model ends its message
    starts: str = ""  # what the model writes before its message
    tool: str = "tool"  # the role of one


FORMS = {
    "chatml": Form(CHATML, "<|im_end|>"),
    "without thoughts": Form(WITHOUT_THOUGHTS, "<|im_end|>"),
    "llama": Form(LLAMA, "<|eot_id|>"),
    "mistral": Form(MISTRAL, "</s>"),
    "deepseek": Form(DEEPSEEK, "<|end_of_sentence|>"),
    "gemma": Form(GEMMA, "<end_of_turn>"),
    "harmony": Form(HARMONY, "<|end|>", "<|channel|>final<|message|>"),
}
QUESTION = {"role": "user", "content": "6 * 7?"}


def chat_of(template: str) -> tuple[ChatTemplate, PreTrainedTokenizerFast]:
    """Its tokens are single bytes, special ones, and 42."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({byte: i for i, byte in enumerate([*alphabet, "42"])}, [("4", "2")]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, clean_up_tokenization_spaces=False)
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, Path("model")), tokenizer


def encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token by token as a model may sample, whatever the tokenizer would have merged: 42 is two tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    pair, four, two = (tokenizer.convert_tokens_to_ids(token) for token in ("42", "4", "2"))
    return [each for token in ids for each in ((four, two) if token == pair else (token,))]


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
