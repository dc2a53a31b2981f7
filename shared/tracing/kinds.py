"""The kinds of spans that services record, with their attributes: the one list of them.

docs/how-to/follow-a-prompt.md explains each; a test holds its table against this module. Attributes are numbers, names
and ids. No prompt, response or message of an error is one: a tracing backend is not where the data of a run lies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypedDict, TypeVar

AttributesT = TypeVar("AttributesT", bound=Mapping[str, Any])

PREFIX = "routershift."  # of every attribute, as a backend has it


class Role(StrEnum):
    """What OpenTelemetry calls the kind of a span."""

    INTERNAL = "internal"
    PRODUCER = "producer"
    CONSUMER = "consumer"
    SERVER = "server"


@dataclass(frozen=True)
class Kind(Generic[AttributesT]):
    """A kind of span: its name, and the attributes that one may have."""

    name: str
    attributes: type[AttributesT]
    role: Role = Role.INTERNAL
    is_sampled: bool = False  # begins a trace for `traces.share` of its subjects, not for each that it is asked for


class Nothing(TypedDict):
    pass


class Admission(TypedDict, total=False):
    group: str
    problem: str
    verifier: str
    samples: int
    tickets_seconds: float
    full_seconds: float


class Waiting(TypedDict):
    stream: str
    group: str
    deliveries: int


class Room(TypedDict):
    stream: str


class Generating(TypedDict, total=False):
    samples: int
    prompt_tokens: int
    response_tokens: int
    longest_tokens: int
    oldest_version: int
    newest_version: int
    sampled_again: int
    weight: float


class Playing(TypedDict, total=False):
    environment: str
    samples: int
    turns: int
    failures: int


class Scoring(TypedDict, total=False):
    verifier: str
    samples: int
    early_samples: int
    attempts: int
    seconds: float
    slowest_seconds: float


class Training(TypedDict):
    step: int
    staleness: int
    samples: int
    tokens: int


class Trained(TypedDict):
    group: str
    stream: str
    step: int


class Lost(TypedDict):
    group: str
    stream: str
    reason: str


class Step(TypedDict, total=False):
    step: int
    groups: int
    skipped: str


class Call(TypedDict):
    method: str


class Evaluating(TypedDict):
    set: str
    version: int


ADMIT = Kind("admit prompt", Admission, Role.PRODUCER, is_sampled=True)
WAIT = Kind("wait in stream", Waiting, Role.CONSUMER)
ROOM = Kind("wait for room", Room)
WEIGHTS = Kind("wait for weights", Nothing)
GENERATE = Kind("generate group", Generating)
PLAY = Kind("play group", Playing)
SCORE = Kind("score group", Scoring)
BATCH = Kind("wait for step", Nothing)
TRAIN = Kind("train on group", Training)
TRAINED = Kind("trained", Trained)
DROPPED = Kind("dropped", Lost)
DEAD = Kind("dead", Lost)
STEP = Kind("step", Step)
COLLATE = Kind("collate", Nothing)
PUBLISH = Kind("publish weights", Nothing)
CHECKPOINT = Kind("write checkpoint", Nothing)
EVALUATE = Kind("evaluate problem", Evaluating, is_sampled=True)
CALL = Kind("serve call", Call, Role.SERVER)

KINDS: tuple[Kind[Any], ...] = (
    ADMIT, WAIT, ROOM, WEIGHTS, GENERATE, PLAY, SCORE, BATCH, TRAIN, TRAINED, DROPPED, DEAD,
    STEP, COLLATE, PUBLISH, CHECKPOINT, EVALUATE, CALL,
)  # fmt: skip
