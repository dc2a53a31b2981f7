"""The audit of a run, from Redis and the learner's checkpoints alone, at any moment.

The account is one consistent snapshot. The streams are not: they are read in pages between two snapshots, while groups
move on. Groups only ever move forward, so one that is at the same stage in both snapshots was there in between, and its
entry had to be found. What is suspect for any other reason is looked at again, and only what is still there after that
is a problem.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.errors import CorruptDataError
from shared.payloads.store import PayloadStore
from shared.settings import StreamSettings
from shared.streams.account import Account, Ledger
from shared.streams.entries import EntryRef
from shared.streams.keys import STAGES, Stream
from shared.streams.payloads import Payloads
from shared.streams.run import Run

_ENTRIES_PAGE, _ENDS_PAGE = 8, 1000
_LOOKS = 3
_LOOK_AGAIN_SECONDS = 1.0

Trained = Mapping[str, int]  # group: step, of everything that the learner's checkpoints contain
Problems = dict[str, dict[str, str]]  # what does not hold: the ids that it does not hold for, each with a detail


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found. All is well where `problems` is empty."""

    ledger: Ledger
    groups: Mapping[str, int]  # in flight, ended, and in the checkpoints
    problems: Problems


@dataclass(slots=True)
class _Ends:
    """The ends of groups."""

    fields: Counter[str]  # trajectories by the ledger's field
    groups: Counter[str]  # ends of each group, less those that a replay took back
    steps: dict[str, list[str]]  # of each group that was trained on


async def audit(
    redis: Redis, run: Run, trained: Callable[[], Trained] | None, store: PayloadStore | None = None
) -> Audit:
    """Looks as often as it takes to tell what is wrong from what is moving.

    Args:
        trained: reads what the checkpoints contain, and raises CorruptDataError where a group stands there twice; None
            where they are not to be had.
        store: where arrays lie, if it can be had here.
    """
    found = await _look(redis, run, trained, store)
    for _ in range(_LOOKS - 1):
        if not found.problems:
            break
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        again = await _look(redis, run, trained, store)
        both = {
            kind: {name: detail for name, detail in ids.items() if name in found.problems.get(kind, {})}
            for kind, ids in again.problems.items()
        }
        found = Audit(again.ledger, again.groups, {kind: ids for kind, ids in both.items() if ids})
    return found


async def _look(redis: Redis, run: Run, trained: Callable[[], Trained] | None, store: PayloadStore | None) -> Audit:
    before = await run.account()
    entries = {stream: await _entries(redis, run, stream) for stream in Stream}
    after = await run.account()
    ends = await _ends(redis, run, after.last_end)
    problems: defaultdict[str, dict[str, str]] = defaultdict(dict)
    contained = None
    try:
        contained = await asyncio.to_thread(trained) if trained else None
    except CorruptDataError as error:
        problems["checkpoints_corrupt"]["lists"] = str(error)
    _check_account(after, ends, problems)
    _check_streams(before, after, entries, problems)
    await _check_blobs(redis, run, entries, problems)
    await _check_references(redis, run, entries, store, problems)
    if contained is not None:
        _check_checkpoints(after, ends, contained, problems)
    groups = {"in_flight": len(after.in_flight), "ended": ends.groups.total(), "trained": len(ends.steps)}
    return Audit(after.ledger, groups | ({} if contained is None else {"checkpoints": len(contained)}), dict(problems))


def _check_account(account: Account, ends: _Ends, problems: Problems) -> None:
    """One snapshot: nothing here can be due to movement."""
    ledger = account.ledger
    if not ledger.balanced:
        problems["ledger_unbalanced"]["prompted"] = f"{ledger.prompted} are not those of the other fields: {ledger}"
    counts = {"trained": ledger.trained}
    counts |= {f"dropped:{reason}": n for reason, n in ledger.dropped.items()}
    counts |= {f"dead:{reason}": n for reason, n in ledger.dead.items()}
    for name in counts.keys() | ends.fields.keys():
        if counts.get(name, 0) != ends.fields[name]:
            problems["ends_not_in_ledger"][name] = f"{ends.fields[name]} ended, {counts.get(name, 0)} in the ledger"
    for group, count in ends.groups.items():
        if count not in (0, 1):
            problems["ended_twice"][group] = f"{count} ends"
        if count and group in account.in_flight:
            problems["ended_in_flight"][group] = f"in flight as {account.in_flight[group][1]}"
    for group, steps in ends.steps.items():
        if len(steps) > 1:
            problems["trained_twice"][group] = f"steps {', '.join(steps)}"
    for group in account.tickets - account.in_flight.keys():
        problems["ticket_without_group"][group] = "holds a ticket and is not in flight"


def _check_streams(
    before: Account, after: Account, entries: Mapping[Stream, list[EntryRef]], problems: Problems
) -> None:
    """Every group in flight has one entry, on the stream of its stage, and every entry a group."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for stream, found in entries.items():
        for entry in found:
            places[entry.group].append(f"{stream} {entry.id}")
            stages = [account.in_flight.get(entry.group) for account in (before, after)]
            if (entry.trajectories, STAGES[stream]) not in stages:
                problems["entry_not_in_flight"][entry.group] = f"{stream} {entry.id}; in flight: {stages}"
    for group, where in places.items():
        if len(where) > 1:
            problems["entry_twice"][group] = ", ".join(where)
    on: defaultdict[str, set[str]] = defaultdict(set)
    for stream, found in entries.items():
        on[STAGES[stream]].update(entry.group for entry in found)
    for group, (_, stage) in after.in_flight.items():
        if before.in_flight.get(group) == after.in_flight[group] and group not in on[stage]:
            problems["group_without_entry"][group] = f"{stage}, found in {places.get(group, 'no stream')}"
    if before == after:  # nothing moved, so that bytes can be compared
        for stream, found in entries.items():
            size = sum(entry.size for entry in found)
            if size != after.bytes.get(stream, 0):
                problems["bytes"][stream] = f"{size} in the stream, {after.bytes.get(stream, 0)} in the account"


async def _check_blobs(redis: Redis, run: Run, entries: Mapping[Stream, list[EntryRef]], problems: Problems) -> None:
    payloads = Payloads(redis, run.keys, StreamSettings())
    for found in entries.values():
        for entry in found:
            if entry.blob and not await payloads.is_whole(entry.blob):
                problems["payload_lost"][entry.group] = f"blob {entry.blob.id} is not whole"


async def _check_references(
    redis: Redis,
    run: Run,
    entries: Mapping[Stream, list[EntryRef]],
    store: PayloadStore | None,
    problems: Problems,
) -> None:
    """What entries and dead letters refer to is on record and in the store. What moves meanwhile is looked at again."""
    referring = {entry.reference: entry.group for found in entries.values() for entry in found if entry.reference}
    on_record: Any = await redis.hgetall(run.keys.payloads)
    recorded = {key.decode(): group.decode() for key, group in on_record.items()}
    dead = {entry.reference: entry.group for entry in await _entries(redis, run, "dead") if entry.reference}
    for key in referring.keys() - recorded.keys():
        problems["payload_not_on_record"][referring[key]] = key
    for key in recorded.keys() - referring.keys() - dead.keys():
        problems["payload_without_entry"][recorded[key]] = key
    if store is not None and recorded:
        held = {stored.key for stored in await asyncio.to_thread(lambda: list(store.list()))}
        for key in recorded.keys() - dead.keys() - held:  # of a dead letter that may be the reason
            problems["payload_lost"][recorded[key]] = f"{key} is not in {store}"


def _check_checkpoints(account: Account, ends: _Ends, contained: Trained, problems: Problems) -> None:
    """The checkpoints were read last. They come first: a group ends when the checkpoint that has it is durable."""
    for group, steps in ends.steps.items():
        if group not in contained:
            problems["trained_not_in_checkpoints"][group] = f"step {steps[0]}"
        elif str(contained[group]) not in steps:
            problems["step_differs"][group] = f"step {contained[group]} in the checkpoints, {steps[0]} in Redis"
    for group, step in contained.items():
        if group not in ends.steps and account.in_flight.get(group, (0, ""))[1] != STAGES[Stream.SCORED]:
            problems["in_checkpoints_not_trained"][group] = f"step {step}"


async def _entries(redis: Redis, run: Run, stream: str) -> list[EntryRef]:
    """All of a stream."""
    entries: list[EntryRef] = []
    start = "-"
    while True:
        page: Any = await redis.xrange(run.keys(stream), start, "+", _ENTRIES_PAGE)
        if not page:
            return entries
        for id_, fields in page:
            entries.append(EntryRef.of(id_, fields))
        start = f"({page[-1][0].decode()}"


async def _ends(redis: Redis, run: Run, last: str) -> _Ends:
    """All until the newest that the account has seen."""
    ends, start = _Ends(Counter(), Counter(), {}), "-"
    while last:
        page: Any = await redis.xrange(run.keys.ended, start, last, _ENDS_PAGE)
        if not page:
            break
        for _, fields in page:
            group, trajectories, field = fields[b"g"].decode(), int(fields[b"n"]), fields[b"e"].decode()
            kind, _, reason = field.partition(":")
            if kind == "replayed":
                ends.fields[f"dead:{reason}"] -= trajectories
                ends.groups[group] -= 1
                continue
            ends.fields[field] += trajectories
            ends.groups[group] += 1
            if kind == "trained":
                ends.steps.setdefault(group, []).append(fields[b"s"].decode())
        start = f"({page[-1][0].decode()}"
    return ends
