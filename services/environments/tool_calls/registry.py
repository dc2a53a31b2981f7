"""The forms by name, and the form that a chat template asks for."""

from services.environments.tool_calls.base import Parser
from services.environments.tool_calls.deepseek import DeepSeekParser
from services.environments.tool_calls.glm import GlmParser
from services.environments.tool_calls.harmony import HarmonyParser
from services.environments.tool_calls.hermes import HermesParser
from services.environments.tool_calls.qwen3_coder import Qwen3CoderParser
from shared.errors import InvalidInputError
from shared.names import did_you_mean

AUTO = "auto"

_PARSERS: dict[str, Parser] = {
    parser.name: parser
    for parser in (HermesParser(), HarmonyParser(), DeepSeekParser(), Qwen3CoderParser(), GlmParser())
}

FORMS = (AUTO, *_PARSERS)


def make_parser(name: str, template: str | None) -> Parser | None:
    """The parser of a form; None where it is to be found and the template writes calls in no known one.

    Args:
        name: one of `FORMS`. "auto": the form that the template shows.
        template: the chat template of the model; None where it has none.

    Raises:
        InvalidInputError: no such form.
    """
    if name != AUTO:
        if name not in _PARSERS:
            raise InvalidInputError(f"tool_calls is {name!r}; known: {', '.join(FORMS)}{did_you_mean(name, FORMS)}")
        return _PARSERS[name]
    shown = template or ""
    if "<|channel|>" in shown and "functions" in shown:
        return _PARSERS[HarmonyParser.name]
    if "tool▁call▁begin" in shown:
        return _PARSERS[DeepSeekParser.name]
    if "<tool_call>" in shown:  # three forms have this tag
        within = {"<function=": Qwen3CoderParser.name, "<arg_key>": GlmParser.name}
        return _PARSERS[next((name for tag, name in within.items() if tag in shown), HermesParser.name)]
    return None
