"""A group on its way through the reward service: read for its texts, handed on with scores, never taken apart.

Router traces are nearly all of a group's bytes, and reward reads none of them. They pass through as they came.
"""

from collections.abc import Sequence

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from routershift import wire
from routershift.trajectory import SpecialToken
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError
from shared.protobuf import Field, fields, header

_TRAJECTORIES = pb.TrajectoryGroup.TRAJECTORIES_FIELD_NUMBER
_SCORED_AT = pb.TrajectoryGroup.SCORED_AT_FIELD_NUMBER
_COMPLETION = pb.Trajectory.COMPLETION_FIELD_NUMBER
_SCORE = pb.Trajectory.SCORE_FIELD_NUMBER
_SEGMENTS = pb.Trajectory.SEGMENTS_FIELD_NUMBER
_TEXT = pb.Completion.TEXT_FIELD_NUMBER
_SPECIAL_TOKENS = pb.Completion.SPECIAL_TOKENS_FIELD_NUMBER


class RawGroup:
    """A serialized TrajectoryGroup."""

    def __init__(self, payload: bytes) -> None:
        """Raises CorruptDataError where it is none, as far as it is read; the learner reads the rest."""
        self._trajectories: list[list[Field]] = []  # the fields of each, but for a score that it may have
        self._others: list[Field] = []
        self.texts: list[str] = []
        self.special_tokens: list[tuple[SpecialToken, ...]] = []
        self.messages: list[tuple[tuple[str, str], ...]] = []  # role and text of each segment; () where there is one
        try:
            for field in fields(memoryview(payload)):
                if field.number == _TRAJECTORIES:
                    kept = [inner for inner in fields(_message(field)) if inner.number != _SCORE]
                    self._trajectories.append(kept)
                    completion = _completion(kept)
                    self.texts.append(completion.text)
                    self.special_tokens.append(wire.decode_special_tokens(completion.special_tokens))
                    self.messages.append(_messages(kept, completion.text))
                elif field.number != _SCORED_AT:
                    self._others.append(field)
            self.prompt = pb.TrajectoryGroup.FromString(b"".join(field.encoded for field in self._others)).prompt
        except (DecodeError, CorruptDataError) as error:
            raise CorruptDataError(
                f"payload of {len(payload)} bytes is no {pb.TrajectoryGroup.DESCRIPTOR.full_name}: {error}"
            ) from None

    def scored(self, scores: Sequence[pb.Score]) -> bytes:
        """The same group with the score of each trajectory, serialized; it was scored now."""
        parts: list[bytes | memoryview] = [field.encoded for field in self._others]
        for trajectory, score in zip(self._trajectories, scores, strict=True):
            encoded = score.SerializeToString()
            score_header = header(_SCORE, len(encoded))
            size = sum(len(field.encoded) for field in trajectory) + len(score_header) + len(encoded)
            parts.append(header(_TRAJECTORIES, size))
            parts += [field.encoded for field in trajectory]
            parts += [score_header, encoded]
        now = Timestamp()
        now.GetCurrentTime()
        encoded = now.SerializeToString()
        return b"".join([*parts, header(_SCORED_AT, len(encoded)), encoded])


def _completion(trajectory: list[Field]) -> pb.Completion:
    """Text and special tokens. Of a text that stands there twice, the last counts, as in every protobuf message."""
    inside = [
        inner for field in trajectory if field.number == _COMPLETION for inner in fields(_message(field))
    ]  # fmt: skip
    texts = [inner.encoded for inner in inside if inner.number == _TEXT]
    special_tokens = [inner.encoded for inner in inside if inner.number == _SPECIAL_TOKENS]
    return pb.Completion.FromString(b"".join([*texts[-1:], *special_tokens]))


def _messages(trajectory: list[Field], last_text: str) -> tuple[tuple[str, str], ...]:
    segments = [pb.Segment.FromString(bytes(_message(field))) for field in trajectory if field.number == _SEGMENTS]
    return tuple((segment.role.value, segment.text) for segment in wire.decode_segments(segments, last_text))


def _message(field: Field) -> memoryview:
    if field.value is None:
        raise CorruptDataError(f"field {field.number} is a number; expected a message")
    return field.value
