"""From a request on the wire to prompt tokens and sampling that an engine may trust."""

from pathlib import Path

from tokenizers import Tokenizer

from routershift.v1 import generation_pb2 as gen
from routershift.v1 import trajectory_pb2 as pb
from services.generation.engines.base import EngineInfo, EngineSampling
from shared.errors import InvalidInputError, NotFoundError
from shared.trajectory import Completion

_MAX_SAMPLES = 1024
_MAX_TEMPERATURE = 2.0  # what vLLM takes; the doors are the same whatever samples


class Requests:
    """Validates requests against one model, and puts text to its responses."""

    def __init__(self, model: Path, info: EngineInfo, default_max_tokens: int) -> None:
        """Raises NotFoundError where the model folder has no tokenizer.json."""
        path = model / "tokenizer.json"
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist; run.model must hold a fast tokenizer beside the weights")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._info = info
        self._default_max_tokens = default_max_tokens

    def prompt(self, request: gen.GenerateRequest) -> list[int]:
        """Token ids of the request's text or ids. Raises InvalidInputError where there are none."""
        kind = request.WhichOneof("input")
        if kind is None:
            raise InvalidInputError("input is missing; set text or token_ids")
        return self.tokens(request.text) if kind == "text" else list(request.token_ids.ids)

    def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

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
        largest = max(prompt)
        _require(largest < info.vocab_size, "token_ids", f"holding {largest}", f"ids below {info.vocab_size}")
        room = info.max_model_len - len(prompt)
        sampling = EngineSampling(
            n=params.n if params.HasField("n") else 1,
            temperature=params.temperature if params.HasField("temperature") else 1.0,
            top_p=params.top_p if params.HasField("top_p") else 1.0,
            top_k=params.top_k if params.HasField("top_k") else 0,
            max_tokens=params.max_tokens if params.HasField("max_tokens") else min(room, self._default_max_tokens),
            seed=params.seed if params.HasField("seed") else None,
        )
        _require(1 <= sampling.n <= _MAX_SAMPLES, "sampling.n", sampling.n, f"1 to {_MAX_SAMPLES}")
        _require(
            0 <= sampling.temperature <= _MAX_TEMPERATURE,
            "sampling.temperature",
            sampling.temperature,
            f"0 (greedy) to {_MAX_TEMPERATURE}",
        )
        _require(0 < sampling.top_p <= 1, "sampling.top_p", sampling.top_p, "above 0, up to 1")
        _require(
            sampling.top_k <= info.vocab_size,
            "sampling.top_k",
            sampling.top_k,
            f"0 (all) to the vocabulary's {info.vocab_size}",
        )
        _require(
            1 <= sampling.max_tokens <= room,
            "sampling.max_tokens",
            sampling.max_tokens,
            f"1 to {room}: the model holds {info.max_model_len} tokens, the prompt takes {len(prompt)}",
        )
        return sampling

    def text(self, completion: Completion) -> str:
        """Without special tokens."""
        return str(self._tokenizer.decode(completion.token_ids.tolist(), skip_special_tokens=True))


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise InvalidInputError(f"{field} is {value}; allowed: {allowed}")
