"""The dead letters of a run, with their reasons: list, show, replay or purge them."""

import argparse
import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.cli.arguments import add_run
from services.cli.attached import attached
from shared.errors import CorruptDataError, InvalidInputError, UnavailableError
from shared.process.exits import EXIT_OK
from shared.streams.dead import DeadLetters
from shared.streams.keys import Stream
from shared.tracking import records

ACTIONS = ("list", "show", "replay", "purge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("ids", nargs="*", metavar="ID", help="dead letters to show, replay or purge; all for every one")


def run(arguments: argparse.Namespace) -> int:
    for letter in asyncio.run(dead(arguments.name, arguments.action, arguments.ids)):
        print(records.dumps(letter))
    return EXIT_OK


async def dead(name: str, action: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What the dead letters are, or what was done to them.

    Args:
        name: a run's folder or id. With REDIS_URL set, any run of that Redis by its id.
        action: list, show, replay or purge.
        ids: of dead letters; `all` for every one of them. `list` takes none.

    Raises:
        InvalidInputError: no id where one is needed, or a dead letter that cannot be replayed.
        NotFoundError: no such run, or no such dead letter; those before it are done.
        UnavailableError: a change is asked of a run that has ended.
        OverloadedError, PreconditionError: a dead letter that cannot be replayed now.
    """
    if bool(ids) == (action == "list"):
        raise InvalidInputError(f"dead {action} takes {'no id' if ids else 'ids, or all'}; got {list(ids)}")
    async with attached(name) as at:
        letters = at.run.dead
        if action == "list":
            return [_summary(letter_id, letter) async for letter_id, letter in letters.all()]
        wanted = await letters.ids() if list(ids) == ["all"] else list(ids)
        if action == "show":
            return [_whole(letter_id, await letters.get(letter_id)) for letter_id in wanted]
        if not at.live:
            raise UnavailableError(
                f"run {at.run.keys.run!r} has ended; start its Redis, or go on with the run, to {action} dead letters"
            )
        return [await _done(letters, action, letter_id) for letter_id in wanted]


async def _done(letters: DeadLetters, action: str, letter_id: str) -> dict[str, Any]:
    if action == "replay":
        await letters.replay(letter_id)
    else:
        await letters.purge(letter_id)
    return {"id": letter_id, "done": action}


def _summary(letter_id: str, letter: pb.DeadLetter) -> dict[str, Any]:
    return {
        "id": letter_id,
        "reason": letter.reason,
        "detail": letter.detail,
        "stream": letter.stream,
        "group": letter.group,
        "trajectories": letter.trajectories,
        "payload_bytes": len(letter.payload),
        "consumer": letter.consumer,
        "created_at": letter.created_at.ToJsonString(),
    }


def _whole(letter_id: str, letter: pb.DeadLetter) -> dict[str, Any]:
    """With the payload: as its message without the tensors, else in Base64."""
    is_prompt = letter.stream in (Stream.PROMPTS, Stream.EPISODES)
    try:
        message = pb.Prompt.FromString(letter.payload) if is_prompt else wire.parse_group(letter.payload)
    except (DecodeError, CorruptDataError):
        return _summary(letter_id, letter) | {"payload": base64.b64encode(letter.payload).decode("ascii")}
    if isinstance(message, pb.TrajectoryGroup):
        for trajectory in message.trajectories:
            for tensors in ("token_ids", "logprobs", "router_trace", "top_logprobs"):
                trajectory.completion.ClearField(tensors)
            trajectory.ClearField("given_token_ids")
    payload = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return _summary(letter_id, letter) | {"payload": payload}
