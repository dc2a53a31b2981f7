"""New weights over the network into both engines, from a learner's side that is a process of its own."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from routershift.trajectory import Completion
from services.generation.engines.base import Arriving, Engine, EngineSampling
from shared.errors import CorruptDataError, InvalidInputError, UnavailableError
from shared.weights.rendezvous import Rendezvous
from tests.support.engines import publish
from tests.support.models import MAX_MODEL_LEN
from tests.support.reference import Reference, check
from tests.support.transfers import changed, specs_of, tensors_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = [2, 9, 4, 21, 17, 6, 8]
SAMPLING = EngineSampling(4, 1.0, 1.0, 0, 24, 1)
LONG = EngineSampling(6, 1.0, 0.95, 0, MAX_MODEL_LEN - len(PROMPT), 3)
SECONDS = 20.0
# Sends the weights of a folder, or what changed in them since those of another, in small buckets, slowly; midway, it
# may stand still.
SENDER = """
import sys, time
from pathlib import Path
from shared.weights import broadcast, buckets
from tests.support.transfers import CPU, outgoing, tensors_of
_, folder, since, base, stands_still, seconds = sys.argv
broadcast._BUCKET_BYTES = 1 << 12
sender = broadcast.Sender("127.0.0.1", 1, float(seconds), CPU, base=int(base) if since else None)
print(sender.rendezvous.port, flush=True)
one, sent = buckets.Group.broadcast, []
def one_at_a_time(*arguments):
    sent.append(one(*arguments))
    if len(sent) == 3 and stands_still == "yes":
        print("midway", flush=True)
        time.sleep(1000)
    time.sleep(0.005)  # samples are drawn meanwhile
buckets.Group.broadcast = one_at_a_time
refused = sender.send(outgoing(tensors_of(Path(folder)), since=tensors_of(Path(since)) if since else None))
sys.exit(len(refused))
"""


@contextmanager
def sending(
    folder: Path, *, since: Path | None = None, base: int | None = None, stands_still: bool = False
) -> Iterator[tuple[subprocess.Popen[str], Arriving]]:
    """Args: since, base: folder and number of the version that what changed begins with."""
    arguments = [str(folder), str(since or ""), str(base), "yes" if stands_still else "no", str(SECONDS)]
    process = subprocess.Popen([sys.executable, "-c", SENDER, *arguments], text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        place = Rendezvous("127.0.0.1", int(process.stdout.readline()), 1, 2, SECONDS, base)
        yield process, Arriving(place, 1, specs_of(tensors_of(folder)))
    finally:
        process.kill()
        process.wait()


async def take(engine: Engine, folder: Path) -> int:
    version = engine.version + 1
    with sending(folder) as (process, weights):
        assert await engine.update_weights(version, weights) > 0
        assert engine.version == version
        assert await asyncio.to_thread(process.wait, SECONDS) == 0
    return version


async def test_versions_come_and_are_served_exactly(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    for name in ("B", "A"):
        version = await take(engine, folders[name])
        for sample in await engine.generate(PROMPT, SAMPLING):
            assert [span.version for span in sample.versions] == [version]
            check(sample, PROMPT, SAMPLING, {version: references[name]})


async def test_what_changed_is_served_exactly_and_of_other_weights_it_is_refused(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference], tmp_path: Path
) -> None:
    base, here = await publish(engine, folders["A"]), tensors_of(folders["A"])
    near, nearer = tmp_path / "near", tmp_path / "nearer"
    for folder, tensors in ((near, changed(here, 0.02)), (nearer, changed(here, 0.02, seed=1))):
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
    with sending(nearer, since=near, base=base) as (process, weights):  # begins with what does not serve
        with pytest.raises(CorruptDataError, match=f"made of version {base} and what changed since, has another SHA"):
            await engine.update_weights(base + 1, weights)
        assert await asyncio.to_thread(process.wait, SECONDS) == 1
    for sample in await engine.generate(PROMPT, SAMPLING):
        check(sample, PROMPT, SAMPLING, {base: references["A"]})
    for folder, since in ((near, folders["A"]), (nearer, near), (folders["A"], nearer)):
        version = engine.version + 1
        with sending(folder, since=since, base=engine.version) as (process, weights):
            await engine.update_weights(version, weights)
            assert await asyncio.to_thread(process.wait, SECONDS) == 0
    for sample in await engine.generate(PROMPT, SAMPLING):
        check(sample, PROMPT, SAMPLING, {version: references["A"]})


async def test_requests_go_on_while_weights_arrive(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    old = await publish(engine, folders["A"])
    samples: list[Completion] = []
    updated = asyncio.Event()

    async def ask(sampling: EngineSampling) -> None:
        while not updated.is_set():
            samples.extend(await engine.generate(PROMPT, sampling))

    with sending(folders["B"]) as (_, weights):
        # Of different lengths, so that not all of them end with the step before the update.
        asking = [asyncio.create_task(ask(replace(LONG, max_tokens=tokens))) for tokens in (LONG.max_tokens, 90, 61)]
        while not samples:  # noqa: ASYNC110  # another process's progress has no event
            await asyncio.sleep(0.001)
        begun = engine.load.tokens
        new = old + 1
        await engine.update_weights(new, weights)
        arrived = engine.load.tokens
        updated.set()
        await asyncio.gather(*asking)
    for sample in samples:
        check(sample, PROMPT, LONG, {old: references["A"], new: references["B"]})
    assert arrived > begun + LONG.n
    assert max(len(sample.versions) for sample in samples) == 2, "no sample lived through the update"


async def test_a_learner_that_dies_midway_leaves_the_old_weights_whole(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    version = await publish(engine, folders["A"])
    with sending(folders["B"], stands_still=True) as (process, weights):
        update = asyncio.create_task(engine.update_weights(version + 1, weights))
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "midway\n"
        (sample,) = await engine.generate(PROMPT, replace(SAMPLING, n=1))
        process.kill()
        with pytest.raises(UnavailableError, match="did not arrive"):
            await update
    assert (engine.version, await engine.healthy()) == (version, True)
    for served in (sample, *await engine.generate(PROMPT, SAMPLING)):
        check(served, PROMPT, SAMPLING, {version: references["A"]})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shape": (3, 5)}, r"model.norm.weight: (3, 5), expected (96,)"),
        ({"name": "other"}, "other: ("),
        ({"dtype": "BOOL"}, "model.norm.weight is of dtype 'BOOL'"),
    ],
)
async def test_what_does_not_fit_is_refused_by_name_before_any_connection(
    engine: Engine, folders: dict[str, Path], change: dict[str, Any], named: str
) -> None:
    specs = specs_of(tensors_of(folders["B"]))
    at = next(i for i, spec in enumerate(specs) if spec.name == "model.norm.weight")
    specs[at] = replace(specs[at], **change)
    nobody = Arriving(Rendezvous("127.0.0.1", 1, 1, 2, SECONDS), 1, specs)
    with pytest.raises(InvalidInputError, match=re.escape(named)):
        await engine.update_weights(engine.version + 1, nobody)


async def test_weights_with_nan_are_refused_after_they_came(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference], tmp_path: Path
) -> None:
    tensors = load_file(folders["B"] / "model.safetensors")
    tensors["model.norm.weight"][7] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    version = await publish(engine, folders["A"])
    with sending(tmp_path) as (_, weights), pytest.raises(InvalidInputError, match=r"tensor model\.norm\.weight holds"):
        await engine.update_weights(version + 1, weights)
    (sample,) = await engine.generate(PROMPT, replace(SAMPLING, n=1))
    check(sample, PROMPT, SAMPLING, {version: references["A"]})
