"""Which variables of a chat template a recipe may set."""

from collections.abc import Mapping
from typing import Any

# Keys of apply_chat_template that no recipe sets as variables of a template, and why.
_OURS = {
    "add_generation_prompt": "it is always true: the policy writes the next message of the assistant",
    "continue_final_message": "the policy writes a message of its own, and continues none",
    "chat_template": "set the key chat_template of the table",
    "conversation": "set columns.prompt to the column of messages",
    "messages": "set columns.prompt to the column of messages",
    "tools": "set the key tools of the table to a column",
}
_OURS |= dict.fromkeys(
    ("tokenize", "return_dict", "return_tensors", "return_assistant_tokens_mask"), "what comes out is text in any case"
)
_OURS |= dict.fromkeys(("padding", "truncation", "max_length"), "set data.max_prompt_tokens to leave long prompts out")
_OURS |= {"tokenizer_kwargs": "a prompt is tokenized as the model's tokenizer has it"}


def check_variables(variables: Mapping[str, Any]) -> None:
    """Raises ValueError for a variable of a template that is not the recipe's to set; says why, and what is."""
    if name := next((name for name in variables if name in _OURS), None):
        raise ValueError(f"{name} = {variables[name]!r} would have no effect: {_OURS[name]}; take it out")
