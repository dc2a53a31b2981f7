"""Records of the episodes that callers opened for themselves: kept for a while, in a bounded space."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from routershift import wire
from routershift.v1 import environment_pb2 as env
from routershift.v1 import trajectory_pb2 as pb
from services.environments.gateway import metrics
from services.environments.gateway.episode import AgentEpisode
from services.environments.gateway.offer import End
from services.environments.gateway.settings import RecordsSettings

ENDS = {
    End.REWARDED: env.EPISODE_END_REWARDED,
    End.CLOSED: env.EPISODE_END_CLOSED,
    End.AGENT_ENDED: env.EPISODE_END_AGENT_ENDED,
    End.TIMED_OUT: env.EPISODE_END_TIMED_OUT,
    End.UNCLAIMED: env.EPISODE_END_UNCLAIMED,
    End.GIVEN_UP: env.EPISODE_END_GIVEN_UP,
}


@dataclass(frozen=True, slots=True)
class _Kept:
    record: bytes  # a GetEpisodeResponse
    timer: asyncio.TimerHandle


class Records:
    """By the ids of their episodes, the oldest first."""

    def __init__(self, settings: RecordsSettings) -> None:
        self._settings = settings
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self.bytes = 0

    def find(self, identity: str) -> env.GetEpisodeResponse | None:
        kept = self._kept.get(identity)
        return None if kept is None else env.GetEpisodeResponse.FromString(kept.record)

    def add(self, episode: AgentEpisode, end: End) -> None:
        """Keeps the record of an episode that has ended; older ones make room for it."""
        record = _record(episode, end).SerializeToString()
        loop = asyncio.get_running_loop()
        self.remove(episode.id, "age")
        self._kept[episode.id] = _Kept(record, loop.call_later(self._settings.seconds, self.remove, episode.id, "age"))
        self._count(len(record))
        while len(self._kept) > self._settings.max_ended:
            self.remove(next(iter(self._kept)), "number")

    def make_room(self, size: int) -> bool:
        """Whether open episodes, of so many bytes, fit beside the records; the oldest of those are removed for them."""
        most = self._settings.max_mb << 20
        while self._kept and self.bytes + size > most:
            self.remove(next(iter(self._kept)), "bytes")
        metrics.RECORD_BYTES.set(self.bytes + size)
        return self.bytes + size <= most

    def remove(self, identity: str, reason: str) -> None:
        if (kept := self._kept.pop(identity, None)) is not None:
            kept.timer.cancel()
            self._count(-len(kept.record))
            metrics.REMOVED.labels(reason).inc()

    def _count(self, size: int) -> None:
        self.bytes += size
        metrics.RECORDS.set(len(self._kept))


def told(episode: AgentEpisode, base_url: str) -> env.AgentEpisode:
    """An episode as its agent is told of it."""
    offer = episode.offer
    return env.AgentEpisode(
        episode_id=episode.id,
        base_url=base_url,
        environment=offer.environment,
        text=offer.prompt,
        messages=[
            pb.Message(role=wire.ROLE_CODES[message["role"]], content=message["content"]) for message in offer.messages
        ],
        task=wire.encode_struct(offer.task),
    )


def state(episode: AgentEpisode) -> env.GetEpisodeResponse:
    """How far one is that is open."""
    recording = episode.recording
    return env.GetEpisodeResponse(episode=told(episode, ""), turns=recording.turns, left_out_turns=recording.left_out)


def _record(episode: AgentEpisode, end: End) -> env.GetEpisodeResponse:
    made = state(episode)
    made.end = ENDS[end]
    if not episode.recording.turns:
        return made
    prompt = episode.recording.prompt
    made.prompt_token_ids.extend(prompt)
    trajectory = episode.recording.trajectory(prompt, 0, episode.cut)
    made.trajectory.CopyFrom(wire.encode_trajectory(pb.TrajectoryId(), trajectory))
    made.trajectory.ClearField("id")
    given = episode.ended.result() if end is End.REWARDED else None
    if given is not None and given.reward is not None:
        made.trajectory.score.CopyFrom(
            pb.Score(
                outcome=pb.OUTCOME_SCORED, reward=given.reward, parts=given.parts, verifier=episode.offer.environment
            )
        )
    return made
