"""A checkpoint as the start of another run: the same tensors, under another identity."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.learner.checkpointing.checkpoint import STATE, TRAINED, describe, step_of, verify
from shared.errors import CorruptDataError, NotFoundError
from shared.files import sync


def find(root: Path, step: int | None) -> Path:
    """A whole checkpoint.

    Args:
        root: the folder of the checkpoints.
        step: that it is of; None: the newest.

    Raises:
        NotFoundError: there is none; names those that are kept.
        CorruptDataError: it is torn.
    """
    kept = sorted(root.glob("step-*"))
    chosen = [folder for folder in kept if step is None or step_of(folder) == step]
    if not chosen:
        steps = sorted({step_of(folder) for folder in kept})
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise NotFoundError(f"{root} has {which}; kept are steps {', '.join(map(str, steps)) or '(none)'}")
    verify(chosen[-1])
    return chosen[-1]


def fork(source: Path, root: Path, identity: Mapping[str, Any], texts: Mapping[str, str]) -> Path:
    """Makes the first checkpoint of another run; durable on return. Its tensors are hard links where that can be.

    It contains no groups, since none of those that it was trained on are in the account of the other run.

    Args:
        source: a whole checkpoint.
        root: the folder of the other run's checkpoints, which is made.
        identity: of the other run, as `identity.identity` gives it.
        texts: files that it has other texts of, by name.

    Raises:
        CorruptDataError: the source says of itself what cannot be read.
        OSError: the disk takes no writes.
    """
    made = root / f"step-{step_of(source):08d}-0000"
    made.mkdir(parents=True)
    try:
        state = json.loads((source / STATE).read_text(encoding="utf-8"))
        state["identity"] = dict(identity)
        state["meta"] = {"groups": {}}  # nor what training has taken: the other run has limits of its own
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"{source / STATE} is no state of a trainer: {error!r}") from None
    link(source, made, but=(STATE, *texts))
    for name, text in {STATE: json.dumps(state, indent=1), **texts}.items():
        (made / name).write_text(text, encoding="utf-8")
    describe(made)
    lists = root / TRAINED
    lists.mkdir()
    (lists / f"{made.name}.json").write_text("{}")
    for path in (*lists.iterdir(), lists, root):
        sync(path)
    return made


def link(source: Path, folder: Path, but: tuple[str, ...] = ()) -> None:
    """Hard links to all files of a folder and those below it, or copies where the file system has no links."""
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if path.is_dir():
            (folder / inside).mkdir()
        elif str(inside) not in but:
            try:
                os.link(path, folder / inside)
            except OSError:  # another disk, or too many links
                shutil.copy2(path, folder / inside)
