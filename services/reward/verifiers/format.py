"""The form of a response: tags around thoughts and answer, and its length."""

import re
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from services.reward.verifiers import answers
from services.reward.verifiers.base import Item, Verdict, Verifier, VerifierSettings
from services.reward.verifiers.tags import THINK
from services.reward.verifiers.thoughts import opened_by


class FormatSettings(VerifierSettings):
    think_tag: str = Field(THINK, pattern=r"^[A-Za-z_]\w*$", description="tag around the thoughts")
    opened_by_prompt: bool = Field(
        False, description="the chat template has written the opening tag already; seen where the prompt ends with it"
    )
    answer_tag: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="tag around the answer; default: all that follows the thoughts"
    )
    free_characters: int | None = Field(None, ge=0, description="length up to which nothing is taken off")
    max_characters: int | None = Field(None, ge=1, description="length at which the whole penalty is taken off")
    length_penalty: float = Field(1.0, ge=0, description="what is taken off at `max_characters` and beyond")

    @model_validator(mode="after")
    def _both_lengths(self) -> Self:
        free, most = self.free_characters, self.max_characters
        if (free is None) != (most is None):
            raise ValueError("free_characters and max_characters belong together; set both or neither")
        if free is not None and most is not None and free >= most:
            raise ValueError(f"free_characters is {free}; expected less than max_characters, {most}")
        return self


class FormatVerifier(Verifier):
    """Reference: not read. The form is right where the response is <think>...</think> and an answer, each tag once.

    The reward is 1 for the right form, less a penalty that grows linearly from `free_characters` to
    `max_characters`: the soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), in characters.
    `correct` is the form alone; `length` is what was taken off, from -length_penalty to 0.
    """

    name: ClassVar[str] = "format"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "thoughts in tags, then an answer; a penalty on length"
    part_names: ClassVar[Mapping[str, str]] = {
        "correct": "1 for the right form, else 0",
        "valid": "as correct",
        "length": "what length takes off the reward, from -length_penalty to 0",
    }
    Settings: ClassVar[type[VerifierSettings]] = FormatSettings
    settings: FormatSettings

    def verify(self, item: Item) -> Verdict:
        text = self.text(item)
        formed, length = float(self._well_formed(text, item.prompt)), self._length(len(text))
        return Verdict(formed + length, {"correct": formed, "valid": formed, "length": length})

    def _well_formed(self, response: str, prompt: str) -> bool:
        settings = self.settings
        think = settings.think_tag
        if settings.opened_by_prompt or opened_by(prompt) == f"<{think}>":
            response = f"<{think}>{response}"
        names = [think] if settings.answer_tag is None else [think, settings.answer_tag]
        wanted = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
        found = re.findall("|".join(map(re.escape, wanted)), response)
        if found != wanted:
            return False
        before, _, rest = response.partition(f"<{think}>")
        thoughts, _, rest = rest.partition(f"</{think}>")
        outside = before
        if settings.answer_tag is not None:
            between, _, rest = rest.partition(f"<{settings.answer_tag}>")
            rest, _, after = rest.partition(f"</{settings.answer_tag}>")
            outside += between + after
        return answers.is_blank(outside) and not answers.is_blank(thoughts) and not answers.is_blank(rest)

    def _length(self, characters: int) -> float:
        free, most = self.settings.free_characters, self.settings.max_characters
        if free is None or most is None:
            return 0.0
        return -self.settings.length_penalty * min(max((characters - free) / (most - free), 0.0), 1.0) + 0.0
