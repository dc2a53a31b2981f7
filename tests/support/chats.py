"""Chat templates of the forms that models have, and a tokenizer that has their special tokens."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shared.models.chat import ChatTemplate

SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>", "<start_of_turn>", "<end_of_turn>",
    "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>", "<think>", "</think>",
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
# As the released one of GPT-OSS: what a tool says has to follow a call, in the form of the template.
HARMONY_TOOLS = (
    "{% set ns = namespace(name=none) %}{% for m in messages %}"
    "{% if m.role == 'assistant' and m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{% set ns.name = call.name %}<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}{% set ns.name = none %}<|start|>assistant<|channel|>final<|message|>"
    "{{ m.content }}<|end|>"
    "{% elif m.role == 'tool' %}{% if ns.name is none %}{{ raise_exception('no call before the output') }}{% endif %}"
    "<|start|>functions.{{ ns.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# As Qwen3's: calls and outputs between tags, several outputs as one message of the user.
QWEN_TOOLS = (
    "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools><|im_end|>\n"
    "{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' }}"
    "{{ m.content }}{{ '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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
