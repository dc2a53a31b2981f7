"""A kept sample: one response with what the policies and routers said of each of its tokens, and its bytes on disk.

Shapes: T response tokens, L routed layers.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routershift.routing import score_code
from routershift.routing.score_code import MISSING_LOG_SCORE
from routershift.trajectory import Role, Segment, VersionSpan, spans_of, versions_of
from shared.errors import CorruptDataError
from shared.tracking import records

TRAINED = "trained"

_PREVIEW_CHARACTERS = 160
_COMPRESSION = 6
_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The sampled tokens of a sample. What was not computed of it is None, as of a group that was dropped.

    On disk log-probs, `log_gamma` and `entropy` have 11 bits; `drift` has the codes of `routing.score_code`.
    """

    ids: NDArray[np.int32]  # [T]
    pieces: tuple[str, ...]  # [T]: the text that each token adds; empty where the bytes of a character go on
    versions: NDArray[np.int64]  # [T]: policy version that sampled the token
    logprobs: NDArray[np.float32]  # [T], at sampling
    trained_logprobs: NDArray[np.float32] | None = None  # [T], of the policy that the loss was computed from
    entropy: NDArray[np.float32] | None = None  # [T] nats, of that policy
    clipped: NDArray[np.bool_] | None = None  # [T]: the clip removed the token's gradient
    log_gamma: NDArray[np.float32] | None = None  # [T] <= 0, before its lower bound; 0 where a route is missing
    drift: NDArray[np.float32] | None = None  # [T, L] >= 0: router shift of each layer; NaN where a route is missing

    @property
    def gamma(self) -> NDArray[np.float32] | None:
        """[T]: the router shift ratio, before its lower bound."""
        return None if self.log_gamma is None else np.exp(self.log_gamma)

    @property
    def log_ratio(self) -> NDArray[np.float32] | None:
        """[T]: trained less sampled log-prob."""
        return None if self.trained_logprobs is None else self.trained_logprobs - self.logprobs

    def record(self) -> dict[str, Any]:
        """Plain lists by name, gamma and log-ratio in the place of what they are made from."""
        return {
            "ids": self.ids.tolist(),
            "pieces": list(self.pieces),
            "versions": self.versions.tolist(),
            "logprobs": _rounded(self.logprobs),
            "trained_logprobs": _rounded(self.trained_logprobs),
            "log_ratio": _rounded(self.log_ratio),
            "entropy": _rounded(self.entropy),
            "clipped": None if self.clipped is None else self.clipped.tolist(),
            "gamma": _rounded(self.gamma),
            "drift": _rounded(self.drift),
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """What a table shows of a sample, without a look at the sample itself."""

    step: int  # that trained on it; of one that was dropped, the step that was being collected
    trajectory: str  # PROMPT/ATTEMPT/SAMPLE, unique within the run
    problem: str  # what the prompt was made of, such as a row of the data; "" where the task does not say
    outcome: str  # "trained", or why it was not: zero_variance, overlong, decided, stale, non_finite, run_finished
    reward: float | None
    correct: float | None  # of the reward's parts
    advantage: float | None
    tokens: int  # sampled
    finish_reason: str  # stop, length or aborted
    oldest_version: int
    newest_version: int
    gamma_mean: float | None
    gamma_min: float | None  # of the token that moved most
    prompt: str  # its first characters
    response: str  # its first characters

    @property
    def group(self) -> str:
        """PROMPT/ATTEMPT, which all samples of a group have."""
        return self.trajectory.rpartition("/")[0]

    @property
    def prompt_id(self) -> str:
        return self.trajectory.split("/", 1)[0]

    @property
    def is_trained(self) -> bool:
        return self.outcome == TRAINED

    def record(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `record`; other names are passed over. Raises KeyError where one is missing."""
        return cls(**{name: record[name] for name in cls.__match_args__})


@dataclass(frozen=True, slots=True)
class Sample:
    """One response of the run."""

    step: int
    trajectory: str
    prompt: str
    problem: str
    response: str
    outcome: str
    reward: float | None
    verifier: str
    tokens: Tokens
    parts: Mapping[str, float] = field(default_factory=dict)  # named contributions to the reward
    verifier_version: str = ""
    message: str = ""  # of the verifier
    advantage: float | None = None  # None where it was not trained on
    finish_reason: str = ""
    layers: tuple[int, ...] = ()  # [L]: of the model, in the order of `tokens.drift`
    # Where others spoke too: what each said, in order. `tokens` are those of the sampled ones, `response` is the last.
    segments: tuple[Segment, ...] = ()

    def summary(self) -> Summary:
        versions = self.tokens.versions
        gamma = self.tokens.gamma if versions.size else None
        return Summary(
            step=self.step,
            trajectory=self.trajectory,
            problem=self.problem,
            outcome=self.outcome,
            reward=self.reward,
            correct=self.parts.get("correct"),
            advantage=self.advantage,
            tokens=int(self.tokens.ids.size),
            finish_reason=self.finish_reason,
            oldest_version=int(versions.min()) if versions.size else 0,
            newest_version=int(versions.max()) if versions.size else 0,
            gamma_mean=None if gamma is None else round(float(gamma.mean()), 5),
            gamma_min=None if gamma is None else round(float(gamma.min()), 5),
            prompt=self.prompt[:_PREVIEW_CHARACTERS],
            response=self.response[:_PREVIEW_CHARACTERS],
        )

    def record(self) -> dict[str, Any]:
        """Plain values and lists by name; numbers that JSON has not are still to be made null (`records.dumps`)."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "tokens"}
        return values | {
            "parts": dict(self.parts),
            "layers": list(self.layers),
            "segments": [asdict(segment) for segment in self.segments],
            "tokens": self.tokens.record(),
        }

    def encode(self) -> bytes:
        """Compressed JSON, with its arrays in Base64."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "tokens"}
        tokens = self.tokens
        arrays = {
            "ids": _encode(tokens.ids, "<i4"),
            "logprobs": _half(tokens.logprobs),
            "trained_logprobs": _half(tokens.trained_logprobs),
            "entropy": _half(tokens.entropy),
            "clipped": _encode(tokens.clipped, "|u1"),
            "log_gamma": _half(tokens.log_gamma),
            "drift": None if tokens.drift is None else _encode(_drift_codes(tokens.drift), "|u1"),
        }
        spans = [[span.version, span.tokens] for span in spans_of(tokens.versions)]
        values |= {
            "parts": dict(self.parts),
            "segments": [asdict(segment) for segment in self.segments],
            "tokens": {**arrays, "pieces": tokens.pieces, "versions": spans},
        }
        return zlib.compress(records.dumps(values).encode(), _COMPRESSION)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, but for rounding.

        Raises:
            CorruptDataError: these bytes are no sample.
        """
        try:
            values: dict[str, Any] = json.loads(zlib.decompress(data))
            tokens = values.pop("tokens")
            ids = _decode(tokens["ids"])
            drift = _decode(tokens["drift"])
            clipped = _decode(tokens["clipped"])
            decoded = Tokens(
                ids=ids.astype(np.int32),
                pieces=tuple(tokens["pieces"]),
                versions=versions_of(tuple(VersionSpan(*span) for span in tokens["versions"])),
                logprobs=_decode(tokens["logprobs"]).astype(np.float32),
                trained_logprobs=_single(tokens["trained_logprobs"]),
                entropy=_single(tokens["entropy"]),
                clipped=None if clipped is None else clipped.astype(np.bool_),
                log_gamma=_single(tokens["log_gamma"]),
                drift=None if drift is None else _drift_of(drift),
            )
            segments = tuple(Segment(**each | {"role": Role(each["role"])}) for each in values.get("segments", ()))
            return cls(**values | {"layers": tuple(values["layers"]), "segments": segments, "tokens": decoded})
        except (zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptDataError(f"{len(data)} bytes are no sample: {type(error).__name__}: {error}") from None


def _half(values: NDArray[Any] | None) -> Any:
    return None if values is None else _encode(values.clip(-_HALF, _HALF), "<f2")


def _encode(values: NDArray[Any] | None, dtype: str) -> Any:
    if values is None:
        return None
    data = base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
    return {"dtype": dtype, "shape": list(values.shape), "data": data}


def _decode(array: Any) -> Any:
    """None where there is none."""
    if array is None:
        return None
    return np.frombuffer(base64.b64decode(array["data"], validate=True), array["dtype"]).reshape(array["shape"])


def _single(array: Any) -> NDArray[np.float32] | None:
    values = _decode(array)
    return None if values is None else values.astype(np.float32)


def _drift_codes(drift: NDArray[np.float32]) -> NDArray[np.uint8]:
    known = np.where(np.isnan(drift), -MISSING_LOG_SCORE, drift.clip(0, _HALF))
    return score_code.encode(-known.astype(np.float16))


def _drift_of(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    scores = score_code.decode(codes).astype(np.float32)
    return np.where(scores == MISSING_LOG_SCORE, np.float32(np.nan), -scores)


def _rounded(values: NDArray[np.float32] | None) -> Any:
    return None if values is None else np.round(values.astype(np.float64), 5).tolist()
