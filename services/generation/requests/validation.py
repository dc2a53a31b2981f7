"""From a request on the wire to prompt tokens and sampling that an engine may trust."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np

from routershift.trajectory import Completion, SpecialToken
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import trajectory_pb2 as pb
from services.generation.engines.base import EngineInfo, EngineSampling
from shared.errors import InvalidInputError
from shared.models.chat import ChatTemplate
from shared.models.detokenizer import TextStream
from shared.models.tokenizer import CHARACTERS_PER_TOKEN, backend, encode, load_tokenizer, special_texts
from shared.sampling import MAX_LOGPROBS, MAX_SAMPLES, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TEMPERATURE, MIN_TEMPERATURE

# Special tokens that are told of a response, of those within its text and of those at its end: a family's forms have
# few, and each costs a decoding.
_SPECIAL_TOKENS = 32


class Requests:
    """Validates requests against one model, and puts text to its responses."""

    def __init__(self, model: Path, info: EngineInfo, default_max_tokens: int) -> None:
        """Raises NotFoundError or CorruptDataError: see `load_tokenizer`."""
        tokenizer = load_tokenizer(model)
        self._tokenizer = backend(tokenizer)
        self._chat = ChatTemplate(tokenizer, model)
        self._info = info
        self._default_max_tokens = default_max_tokens

    async def prompt(self, request: gen.GenerateRequest) -> list[int]:
        """Token ids of the request's text, conversation or ids.

        Raises:
            InvalidInputError: there are none, or the chat template refuses the conversation.
            PreconditionError: a conversation, and the model has no chat template.
        """
        kind = request.WhichOneof("input")
        if kind is None:
            raise InvalidInputError("input is missing; set text, token_ids or chat")
        if kind == "text":
            self._require_short("text", len(request.text))
            return await self.tokens(request.text)
        if kind == "token_ids":
            return list(request.token_ids.ids)
        # The template copies roles too, and one may be as long as a content.
        parts = zip(*((len(message.role), len(message.content)) for message in request.chat.messages), strict=True)
        self._require_short("chat.messages", max(map(sum, parts), default=0))
        most = self._info.max_model_len
        _require(
            len(request.chat.messages) <= most,
            "chat.messages",
            f"{len(request.chat.messages)} long",
            f"up to {most}, as each takes a token at least",
        )
        messages = [{"role": message.role, "content": message.content} for message in request.chat.messages]
        _require(len(messages) > 0, "chat.messages", "empty", "at least one message")
        for i, message in enumerate(messages):
            _require(
                message["role"] != "",
                f"chat.messages[{i}].role",
                "empty",
                "a role of the model, as system, user or assistant",
            )
        # The template writes the special tokens itself.
        return await self.tokens(await asyncio.to_thread(self._chat.render, messages), add_special_tokens=False)

    def _require_short(self, field: str, length: int) -> None:
        """What is far too long for the model is not read token by token to find that out."""
        most = self._info.max_model_len * CHARACTERS_PER_TOKEN
        _require(length <= most, field, f"{length} characters long", f"up to {most}, as the model's tokens may hold")

    async def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return await encode(self._tokenizer, text, add_special_tokens=add_special_tokens)

    def sampling(self, prompt: list[int], params: pb.SamplingParams) -> EngineSampling:
        """Fills in defaults and checks every range, and that prompt and response fit the model.

        Raises:
            InvalidInputError: names the field, its value and what is allowed.
        """
        info = self._info
        _require(len(prompt) > 0, "prompt", "empty", "at least one token")
        _require(
            len(prompt) < info.max_model_len,
            "prompt",
            f"{len(prompt)} tokens long",
            f"below the model's {info.max_model_len}; shorten it or raise generation.max_model_len",
        )
        _require_ids("token_ids", prompt, info.vocab_size)
        room = info.max_model_len - len(prompt)
        sampling = EngineSampling(
            n=params.n if params.HasField("n") else 1,
            temperature=_decimal(params.temperature) if params.HasField("temperature") else 1.0,
            top_p=_decimal(params.top_p) if params.HasField("top_p") else 1.0,
            top_k=params.top_k,
            max_tokens=params.max_tokens if params.HasField("max_tokens") else min(room, self._default_max_tokens),
            seed=params.seed if params.HasField("seed") else None,
            min_p=_decimal(params.min_p),
            stop=tuple(params.stop),
            stop_token_ids=tuple(params.stop_token_ids),
            logprobs=params.logprobs,
        )
        _require(1 <= sampling.n <= MAX_SAMPLES, "sampling.n", sampling.n, f"1 to {MAX_SAMPLES}")
        _require(
            sampling.temperature == 0 or MIN_TEMPERATURE <= sampling.temperature <= MAX_TEMPERATURE,
            "sampling.temperature",
            sampling.temperature,
            f"0 (greedy), or {MIN_TEMPERATURE} to {MAX_TEMPERATURE}",
        )
        _require(0 < sampling.top_p <= 1, "sampling.top_p", sampling.top_p, "above 0, up to 1")
        _require(
            sampling.top_k <= info.vocab_size,
            "sampling.top_k",
            sampling.top_k,
            f"0 (all) to the vocabulary's {info.vocab_size}",
        )
        _require(0 <= sampling.min_p <= 1, "sampling.min_p", sampling.min_p, "0 (none) to 1")
        _require(
            1 <= sampling.max_tokens <= room,
            "sampling.max_tokens",
            sampling.max_tokens,
            f"1 to {room}: the model holds {info.max_model_len} tokens, the prompt takes {len(prompt)}",
        )
        _require_few("sampling.stop", sampling.stop)
        for stop in sampling.stop:
            _require(
                1 <= len(stop) <= MAX_STOP_CHARACTERS,
                "sampling.stop",
                f"holding a text of {len(stop)} characters",
                f"texts of 1 to {MAX_STOP_CHARACTERS}",
            )
        _require_few("sampling.stop_token_ids", sampling.stop_token_ids)
        _require_ids("sampling.stop_token_ids", sampling.stop_token_ids, info.vocab_size)
        most = min(MAX_LOGPROBS, info.vocab_size)
        _require(sampling.logprobs <= most, "sampling.logprobs", sampling.logprobs, f"0 (none) to {most}")
        return sampling

    def with_text(self, completion: Completion) -> Completion:
        """With the text of its tokens, and the special tokens that this leaves out."""
        tokens: list[int] = completion.token_ids.tolist()
        text = self._text(tokens)
        return replace(completion, text=text, special_tokens=self._special_tokens(tokens, len(text)))

    def _special_tokens(self, tokens: list[int], end: int) -> tuple[SpecialToken, ...]:
        special = special_texts(self._tokenizer)
        places = [place for place, token in enumerate(tokens) if token in special]
        after_text = len(tokens)  # from here on, all are special
        while after_text and tokens[after_text - 1] in special:
            after_text -= 1
        within = [place for place in places if place < after_text][:_SPECIAL_TOKENS]
        last = [place for place in places if place >= after_text][-_SPECIAL_TOKENS:]
        return (
            *(SpecialToken(min(len(self._text(tokens[:place])), end), special[tokens[place]]) for place in within),
            *(SpecialToken(end, special[tokens[place]]) for place in last),
        )

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def text_stream(self) -> TextStream:
        """For the pieces of one sample."""
        return TextStream(self._tokenizer)


def _decimal(value: float) -> float:
    """The number that a caller wrote: float32 on the wire, where 0.01 becomes 0.009999999776482582."""
    return float(str(np.float32(value)))


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise InvalidInputError(f"{field} is {value}; allowed: {allowed}")


def _require_ids(field: str, ids: "list[int] | tuple[int, ...]", vocab_size: int) -> None:
    largest = max(ids, default=0)
    _require(largest < vocab_size, field, f"holding {largest}", f"ids below {vocab_size}")


def _require_few(field: str, values: "tuple[object, ...]") -> None:
    _require(len(values) <= MAX_STOPS, field, f"{len(values)} long", f"up to {MAX_STOPS} entries")
