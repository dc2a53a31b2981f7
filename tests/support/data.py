"""Model folders with tokenizers and chat templates of the shapes that models have, and rows on disk."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from services.curriculum.data.loading import load
from services.curriculum.data.overlap import Loaded
from services.curriculum.settings import Settings
from tests.support.tokenizers import byte_level

# Written for the tests, in the shape of the families' own: which tokens open a turn, what becomes of a system message,
# thoughts and tools, and who writes the first token.
TEMPLATES = {
    "qwen3": (
        "{%- if tools %}<|im_start|>system\n"
        "{%- if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}# Tools\n"
        "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n"
        "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
        "{%- for message in messages %}{% if message.role != 'system' %}"
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n"
        "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    "olmoe": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>\n"
        "{{ message['content'] + eos_token }}{% else %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endif %}"
        "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
    ),
    "gpt-oss": (
        "<|start|>system<|message|>Knowledge cutoff: 2024-06\n\nReasoning: {{ reasoning_effort or 'medium' }}\n\n"
        "# Valid channels: analysis, commentary, final.<|end|>"
        "{%- set first = messages[0] %}{% if first.role in ['developer', 'system'] %}"
        "<|start|>developer<|message|># Instructions\n\n{{ first.content }}<|end|>"
        "{%- set messages = messages[1:] %}{% endif %}"
        "{%- for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endfor %}"
        "{%- if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
    "deepseek": (
        "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{% set ns.system = ns.system + message['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
        "{% for message in messages %}{% if message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
        "{% elif message['role'] == 'assistant' %}<｜Assistant｜>{{ message['content'] }}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
    ),
    "mixtral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
}
_SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|start|>", "<|message|>", "<|end|>", "<｜User｜>", "<｜Assistant｜>",
]  # fmt: skip


def save_chat_model(folder: Path, template: str | None = TEMPLATES["qwen3"], positions: int = 4096) -> Path:
    """A model folder as far as data needs it. Like those of Llama and Mixtral, its tokenizer begins a text with <s>."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = byte_level()
    tokens.add_special_tokens(["<s>", *_SPECIAL])
    tokens.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokens.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="<eos>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = {"model_type": "qwen3_moe", "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def sums(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of different problems."""
    return [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(start, start + count)]


def source(path: object, **keys: Any) -> dict[str, Any]:
    """A table of data: rows of `sums` where `keys` say nothing else."""
    columns = {"prompt": "question", "reference": "answer"}
    return {"source": str(path), "columns": columns, "verifier": "math", **keys}


def settings(
    model: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None, **data: Any
) -> Settings:
    run, rollout = data.pop("run", {}), data.pop("rollout", {})
    tables = {"run": {"model": model, **run}, "rollout": rollout}
    return Settings.model_validate({**tables, "data": {"train": train, "eval": held_out or [], **data}})


def loaded(
    model: Path,
    train: list[dict[str, Any]],
    held_out: list[dict[str, Any]] | None = None,
    **data: Mapping[str, Any] | Any,
) -> Loaded:
    """Both in one; what a start would be refused for is in `errors`."""
    return load(settings(model, train, held_out, **data), model)
