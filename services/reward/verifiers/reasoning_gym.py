"""The tasks of reasoning-gym, judged by their own scorers."""

import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from types import CodeType
from typing import Any, ClassVar

from services.reward.verifiers import answers, cpu
from services.reward.verifiers.base import CORRECT, VALID, Item, Verdict, Verifier, VerifierError
from shared import procedural
from shared.errors import InvalidInputError, NotFoundError
from shared.values import number, shown

_MAX_CHARACTERS = 65_536  # of an answer
_TUPLES = ("arc_agi", "rearc")  # compare the board of the entry with one of tuples


class ReasoningGymVerifier(Verifier):
    """Reference: {"dataset": "chain_sum", "entry": {"question": ..., "answer": ..., "metadata": {...}}}.

    With "config" where the data set was made with another one. The answer is what stands in the last
    <answer>...</answer>, else in the last box, else all that follows the thoughts; the reward is what the data set's
    `score_answer` gives for it. An answer on which that breaks or takes longer than `judging_seconds` is wrong.
    Data sets whose scorers evaluate text as Python are refused by name; what is evaluated nevertheless is stopped.
    """

    name: ClassVar[str] = "reasoning_gym"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a task of reasoning-gym, by its own scorer"
    thinking: ClassVar[bool] = False
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "required": ["dataset", "entry"],
        "properties": {
            "dataset": {"type": "string"},
            "config": {"type": "object"},
            "entry": {"type": "object", "required": ["question", "answer", "metadata"]},
        },
    }
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT, "valid": VALID}

    def start(self) -> None:
        """Imports reasoning_gym. Raises MissingDependencyError where it is not there."""
        procedural.check("chain_sum")
        self._guard = _Guard()
        sys.addaudithook(self._guard)

    def verify(self, item: Item) -> Verdict:
        name, data_set, entry = _read(item.reference)
        answer = _answer(self.text(item))
        if answer is None:
            return _verdict(0.0, valid=False)
        try:
            with cpu.limited(self.settings.judging_seconds):
                reward = self._score(name, data_set, answer, entry)
        except cpu.CpuTimeError:
            reward = 0.0
        except VerifierError:
            raise
        except Exception:  # the answer's fault, unless the entry's own answer fares no better
            self._check(name, data_set, entry)
            reward = 0.0
        return _verdict(reward, valid=True)

    def _score(self, name: str, data_set: Any, answer: str, entry: dict[str, Any]) -> float:
        with self._guard:
            value = data_set.score_answer(answer=answer, entry=entry)
        if self._guard.stopped:
            raise VerifierError(f"reasoning_gym's scorer of {name} evaluates text as Python, which is not done here")
        return number(value) or 0.0

    def _check(self, name: str, data_set: Any, entry: dict[str, Any]) -> None:
        try:
            with cpu.limited(self.settings.judging_seconds):
                self._score(name, data_set, str(entry["answer"]), entry)
        except VerifierError:
            raise
        except (Exception, cpu.CpuTimeError) as error:
            raise InvalidInputError(
                f"reference of reasoning_gym: the scorer of {name} cannot read the entry, even with its own answer: "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from None


class _Guard:
    """An audit hook that stops what evaluates text while scorers run, whatever their version does."""

    def __init__(self) -> None:
        self._on = False
        self.stopped = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if (
            self._on
            and event == "exec"
            and isinstance(code := arguments[0], CodeType)
            and code.co_filename == "<string>"
        ):
            self.stopped = True
            raise RuntimeError("text is not evaluated as Python here")

    def __enter__(self) -> None:
        self._on, self.stopped = True, False

    def __exit__(self, *reason: object) -> None:
        self._on = False


def _read(reference: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Name, data set and entry. Raises InvalidInputError where one of them cannot be used."""
    name, config, entry = reference.get("dataset"), reference.get("config", {}), reference.get("entry")
    if not isinstance(name, str) or not isinstance(config, Mapping):
        raise InvalidInputError(
            f"reference of reasoning_gym has dataset = {shown(name)}, config = {shown(config)}; expected the name of a "
            "data set, and a table"
        )
    if not isinstance(entry, Mapping) or not {"question", "answer", "metadata"} <= entry.keys():
        raise InvalidInputError(
            f"reference of reasoning_gym has entry = {shown(entry)}; expected a table with question, answer "
            "and metadata"
        )
    try:
        data_set = _task(name, json.dumps(dict(config), sort_keys=True))
    except (NotFoundError, InvalidInputError) as error:
        raise InvalidInputError(
            f"reference of reasoning_gym has dataset = {name!r}, config = {shown(dict(config))}: {error}"
        ) from None
    # A scorer may change what it is given.
    copied = json.loads(json.dumps(dict(entry)))
    return name, data_set, _with_tuples(copied) if name in _TUPLES else copied


@lru_cache(maxsize=64)
def _task(name: str, config: str) -> Any:
    return procedural.create(name, {**json.loads(config), "seed": 0, "size": 1})


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _answer(text: str) -> str | None:
    """None where there is none, or it is too long."""
    content = answers.tagged(text)
    if content is None:
        return None
    answer = content or answers.boxed(text) or text
    return answer.strip() if not answers.is_blank(answer) and len(answer) <= _MAX_CHARACTERS else None


def _verdict(reward: float, valid: bool) -> Verdict:
    return Verdict(reward, {"correct": float(reward >= 1), "valid": float(valid)})
