"""The model as the gateway needs it: who samples from it, and what turns messages into tokens and back."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol, Unpack

from routershift.client.requests import Sampling
from routershift.trajectory import Completion
from routershift.v1 import generation_pb2 as gen
from shared.errors import InvalidInputError
from shared.models.chat import ChatTemplate
from shared.models.detokenizer import TextStream
from shared.models.tokenizer import CHARACTERS_PER_TOKEN, backend, encode, load_tokenizer, special_texts


class Policy(Protocol):
    """Samples; `shared.clients.GenerationClient` does."""

    async def generate(
        self, prompt: Sequence[int], *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]: ...

    def stream(
        self, prompt: Sequence[int], *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Completion]: ...

    async def status(self) -> gen.GenerationServiceGetStatusResponse: ...


class Texts:
    """Between texts and the token ids of one model."""

    def __init__(self, folder: Path, longest: int) -> None:
        """Args: folder: of the model; longest: tokens that it takes.

        Raises:
            NotFoundError, CorruptDataError: see `load_tokenizer`.
        """
        tokenizer = load_tokenizer(folder)
        self.chat = ChatTemplate(tokenizer, folder)
        self._tokenizer = backend(tokenizer)
        self._special = special_texts(self._tokenizer)
        self._longest = longest * CHARACTERS_PER_TOKEN

    async def encode(self, text: str, field: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Raises InvalidInputError for a text that is far too long, by the name of its field."""
        if len(text) > self._longest:
            raise InvalidInputError(
                f"{field} is {len(text)} characters long; allowed: {self._longest}, as the model's tokens may hold"
            )
        return await encode(self._tokenizer, text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """With special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def stream(self) -> TextStream:
        """Decodes a response that comes in pieces, with special tokens."""
        return TextStream(self._tokenizer, with_special=True)

    def piece(self, token: int) -> str:
        """The text of one token by itself; of some bytes of a character, it has a replacement character."""
        return self._special.get(token) or self.decode([token])
