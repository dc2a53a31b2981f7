"""The record of an episode as JSON."""

from typing import Any

from routershift import wire
from routershift.trajectory import Segment, Trajectory, spans_of, versions_of
from routershift.v1 import environment_pb2 as env
from services.environments.gateway.records import ENDS

_NAMES = {code: str(end) for end, code in ENDS.items()} | {env.EPISODE_END_UNSPECIFIED: None}


def record_json(record: env.GetEpisodeResponse) -> dict[str, Any]:
    """How far an episode is, and all tokens of one that was opened and has ended: with log-probs and versions."""
    told = record.episode
    made: dict[str, Any] = {
        "id": told.episode_id,
        "state": "open" if record.end == env.EPISODE_END_UNSPECIFIED else "ended",
        "end": _NAMES[record.end],
        "environment": told.environment,
        "prompt": told.text,
        "messages": [{"role": str(wire.ROLES[message.role]), "content": message.content} for message in told.messages],
        "task": wire.decode_struct(told.task),
        "turns": record.turns,
        "left_out_turns": record.left_out_turns,
    }
    if not record.HasField("trajectory"):
        return made
    trajectory = wire.decode_trajectory(record.trajectory)
    score = record.trajectory.score
    return made | {
        "reward": score.reward if score.HasField("reward") else None,
        "parts": dict(score.parts),
        "finish_reason": str(trajectory.completion.finish_reason),
        "prompt_token_ids": list(record.prompt_token_ids),
        "segments": _segments(trajectory),
    }


def _segments(trajectory: Trajectory) -> list[dict[str, Any]]:
    """In order; sampled ones have a log-prob for each token, and the versions of the weights that they came from."""
    completion = trajectory.completion
    ids, versions = trajectory.token_ids, versions_of(completion.versions)
    segments = trajectory.segments or trajectory.turns
    made = []
    at = sampled = 0
    for segment in segments:
        told = _segment(segment, ids[at : at + segment.tokens].tolist())
        if segment.is_sampled:
            part = slice(sampled, sampled + segment.tokens)
            told["logprobs"] = completion.logprobs[part].tolist()
            told["versions"] = [{"version": s.version, "tokens": s.tokens} for s in spans_of(versions[part])]
            told["reward"] = segment.reward
            sampled += segment.tokens
        at += segment.tokens
        made.append(told)
    return made


def _segment(segment: Segment, token_ids: list[int]) -> dict[str, Any]:
    return {
        "role": str(segment.role),
        "sampled": segment.is_sampled,
        "text": segment.text,
        "token_ids": token_ids,
    }
