"""The first prompts of a run, as the policy would read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tokenizers import Tokenizer

from services.cli.recipe import Recipe
from services.curriculum.origin import make_problems
from shared.models.tokenizer import read_tokenizer

_FIRST = 64  # prompts whose lengths are measured
_SHOWN_IDS = 64
_SHOWN_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Prompts:
    """The first prompts; ids and lengths are empty where the tokenizer is not here."""

    source: str
    first: str
    first_ids: Sequence[int]
    lengths: Sequence[int]  # tokens
    verifier: str

    def rows(self) -> Iterator[tuple[str, str]]:
        """What a plan says of them: subject and text."""
        yield "data", f"{self.source}, judged by {self.verifier}"
        text = self.first if len(self.first) <= _SHOWN_CHARACTERS else f"{self.first[:_SHOWN_CHARACTERS]}..."
        yield "prompt", repr(text)
        if self.lengths:
            more = f" and {len(self.first_ids) - _SHOWN_IDS} more" if len(self.first_ids) > _SHOWN_IDS else ""
            yield "prompt", f"token ids {list(self.first_ids[:_SHOWN_IDS])}{more}"
            low, high = min(self.lengths), max(self.lengths)
            yield (
                "lengths",
                f"the first {len(self.lengths)} prompts have {low} to {high} tokens, median {median(self.lengths):g}",
            )


def read_prompts(recipe: Recipe, model: Path | None) -> Prompts:
    """Args: model: the model folder, or None where it is not here.

    Raises:
        NotFoundError, InvalidInputError, CorruptDataError: what stops the curriculum from making them.
    """
    made = make_problems(recipe)
    problems = [made.train(index) for index in range(_FIRST)]
    tokenizer = read_tokenizer(model) if model else None
    ids = [problem.token_ids or _encoded(problem.prompt, tokenizer) for problem in problems]
    verifiers = ", ".join(dict.fromkeys(problem.verifier for problem in problems))
    lengths = [len(each) for each in ids if each]
    first = problems[0].prompt
    if problems[0].token_ids and tokenizer:  # as the chat template put it
        first = tokenizer.decode(list(ids[0]), skip_special_tokens=False)
    return Prompts(_source(recipe), first, ids[0], lengths, verifiers)


def _encoded(prompt: str, tokenizer: Tokenizer | None) -> Sequence[int]:
    return tokenizer.encode(prompt).ids if tokenizer else ()


def _source(recipe: Recipe) -> str:
    if recipe.run.task is not None:
        return f"task {recipe.run.task}"
    return ", ".join(source.source for source in recipe.data.train)
