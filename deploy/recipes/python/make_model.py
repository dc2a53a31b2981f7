"""Makes the start model of the python recipe: a tiny Qwen3-MoE that can call a tool, and mostly guesses.

    python -m deploy.recipes.python.make_model --seed 0 --out DIR    # in the repository

It reads conversations by a chat template of its own, and writes calls in the form of Hermes and Qwen. Its teacher first
calls the tool `python` for nearly each product, towards the end for one in three, else it guesses; one program in four
adds where it should multiply. What a program printed is its answer. So the model has seen what calls look like, and
reinforcement learning has to find out which of them pay.
"""

import string

import numpy as np
from transformers import PreTrainedTokenizerFast

from deploy.recipes.python.make_rows import pairs
from deploy.recipes.tiny_model import Batches, Example, build_tokenizer, in_lengths, make
from services.environments.kinds.python import PythonEnvironment, PythonSettings

MAX_EPISODE_TOKENS = 64  # that the model says in all its turns
LONGEST = 320  # tokens of prompt, turns and what programs print
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}tools:{% for tool in tools %}{{ ' ' ~ tool.function.name }}{% endfor %}{{ '\\n' }}{% endif %}"
    "{% for message in messages %}{{ message.role }}:"
    "{% if message.role == 'assistant' %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}{{ eos_token ~ '\\n' }}"
    "{% else %}{{ message.content | trim ~ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_CALL = ('<tool_call>{"name": "', "python", '", "arguments": {"', "code", '": "', "print(", ')"}}</tool_call>')
_WORDS = ("tools:", "system:", "user:", "assistant:", "tool:", "\n", *_CALL)
SYMBOLS = (*(c for c in string.printable if c.isprintable()), *_WORDS)
_ASKING, _GUESSING = 0.9, 0.35  # shares of problems at which it calls, at first and towards the end
_ASKING_SHARE = 0.7  # of the steps
_WRONG_SHARE = 0.25  # of its programs


def tokenizer_of_chats() -> PreTrainedTokenizerFast:
    """All that can be printed character by character, what calls consist of in larger pieces."""
    return build_tokenizer(SYMBOLS, LONGEST, CHAT_TEMPLATE)


def teach(tokenizer: PreTrainedTokenizerFast, a: int, b: int, calls: bool, rng: np.random.Generator) -> Example:
    """The prompt, then by turns what the teacher says and what the tool prints, last its answer."""
    messages = [{"role": "user", "content": f"{a} * {b}"}]
    tools = PythonEnvironment(PythonSettings()).tools
    rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    prompt = str(rendered).removeprefix("<bos>")
    if not calls:
        return prompt, str(rng.integers(100, 9802))  # that many are possible
    wrong = rng.random() < _WRONG_SHARE
    name, python, arguments, code, begin, print_, end = _CALL
    call = f"{name}{python}{arguments}{code}{begin}{print_}{a}{'+' if wrong else '*'}{b}{end}<eos>"
    printed = str(a + b if wrong else a * b)
    return prompt, call, f"\ntool:{printed}\nassistant:", printed


def main() -> None:
    tokenizer = tokenizer_of_chats()
    _, taught = pairs()

    def batches(seed: int, steps: int, batch: int) -> Batches:
        def draw(index: int, share: float, rng: np.random.Generator) -> Example:
            a, b = taught[rng.integers(len(taught))]
            calling = _ASKING if share < _ASKING_SHARE else _GUESSING
            return teach(tokenizer, a, b, rng.random() < calling, rng)

        return in_lengths(tokenizer, draw, seed, steps, batch)

    make("python", tokenizer, batches, MAX_EPISODE_TOKENS, steps=800, batch=64)


if __name__ == "__main__":
    main()
