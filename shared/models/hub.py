"""Models by name: what is needed of a model on the Hugging Face Hub, in the cache that all tools of the Hub share.

Code that a model brings with it is neither fetched nor run.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

from shared.errors import MissingDependencyError, NotFoundError, PreconditionError
from shared.models.folder import DESCRIPTIONS, INDEX, weight_names

SCHEME = "hf://"  # before a name that must not be taken for a path
_WEIGHTS = ("model.safetensors", "*-of-*.safetensors")  # whole, and in the shards that an index names
_LOOKS: ContextVar[bool] = ContextVar("only_looking", default=False)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def parse_model(text: str, beside: Path) -> Path | str:
    """The folder that a setting means, or the name on the Hub as OWNER/NAME.

    OWNER/NAME is a name where there is no folder OWNER. `./OWNER/NAME` is always a folder, `hf://OWNER/NAME` never.

    Args:
        beside: folder that a relative path begins in.

    Raises:
        ValueError: what follows hf:// is no OWNER/NAME.
    """
    name = text.removeprefix(SCHEME)
    if _NAME.fullmatch(name) and (name != text or not (beside / name.partition("/")[0]).is_dir()):
        return name
    if name != text:
        raise ValueError(f"{name!r} is not OWNER/NAME, as in hf://Qwen/Qwen3-30B-A3B")
    return beside / text


@cache
def fetch(name: str, revision: str = "", *, weights: bool = True) -> Path:
    """The folder of a model in the cache of the Hub, after what it lacks was downloaded, with progress on stderr.

    Descriptions come first, then the weights that the index names: a repository may hold the same weights in several
    formats. Without network, or with HF_HUB_OFFLINE, the cache alone counts. A process asks once, so that a branch
    which moves cannot give it two models.

    Args:
        name: OWNER/NAME.
        revision: branch, tag or commit; "" for the main branch.
        weights: False where config, tokenizer and chat template are enough.

    Raises:
        NotFoundError: the Hub, or the cache where the Hub cannot be asked, lacks the model, the revision or a file.
        PreconditionError: the Hub refuses access, or the cache cannot be written.
        CorruptDataError: the index of the weights is broken.
        MissingDependencyError: huggingface_hub is not installed.
    """
    download = _downloader(name)
    with _explained(name, revision):
        folder = Path(download(name, revision=revision or None, allow_patterns=[*DESCRIPTIONS, INDEX]))
        files = ["config.json"]
        if weights:
            files += weight_names(folder)
            download(name, revision=folder.name, allow_patterns=files)  # at the commit of the descriptions
    if missing := [file for file in files if not (folder / file).is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise NotFoundError(
            f"run.model is {name}; its snapshot {folder} has no {', '.join(missing[:3])}{more}, and weights are read "
            f"from safetensors alone. {_by_hand(name, revision)}"
        )
    return folder


@dataclass(frozen=True, slots=True)
class Download:
    """What a start would fetch of a model."""

    files: int
    bytes: int


@contextmanager
def only_looking() -> Iterator[None]:
    """In the block `fetch` looks into the cache and downloads nothing, as with HF_HUB_OFFLINE."""
    token = _LOOKS.set(True)
    try:
        yield
    finally:
        _LOOKS.reset(token)


def would_download(name: str, revision: str = "") -> Download:
    """Asks the Hub what `fetch` would download; nothing is. Raises as `fetch` does.

    Weights are those whose names an index has: the index itself is not read.
    """
    download = _downloader(name)
    from huggingface_hub import constants

    with _explained(name, revision):
        listed: Any = download(
            name,
            revision=revision or None,
            allow_patterns=[*DESCRIPTIONS, INDEX, *_WEIGHTS],
            local_files_only=constants.is_offline_mode(),
            dry_run=True,
        )
    shards = any(file.filename == INDEX for file in listed)
    unused = _WEIGHTS[0] if shards else _WEIGHTS[1]
    wanted = [file for file in listed if file.will_download and not fnmatch(file.filename, unused)]
    return Download(len(wanted), sum(file.file_size for file in wanted))


def _downloader(name: str) -> Callable[..., str]:
    """`snapshot_download`, which gives the folder of one commit in the cache. Offline it looks only there."""
    try:
        from huggingface_hub import constants, snapshot_download  # here: images without torch read settings too
    except ImportError:
        raise MissingDependencyError(
            f"run.model is {name}, on the Hugging Face Hub, and huggingface_hub is not installed; run "
            "`pip install huggingface_hub`, or set run.model to a folder"
        ) from None
    return partial(snapshot_download, local_files_only=constants.is_offline_mode() or _LOOKS.get())


@contextmanager
def _explained(name: str, revision: str) -> Iterator[None]:
    """Puts what a download raises into one line of ours."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise NotFoundError(
            f"run.model_revision is {revision!r}; the Hugging Face Hub has no such branch, tag or commit of {name}"
        ) from None
    except errors.GatedRepoError:
        raise PreconditionError(
            f"run.model is {name}; accept its terms at https://huggingface.co/{name}, and set HF_TOKEN to a token that "
            "may read it"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.DryRunError) as error:
        part = "only a part of it is" if isinstance(error, errors.IncompleteSnapshotError) else "it is not"
        why = "the Hub cannot be reached"
        if constants.is_offline_mode():
            why = "HF_HUB_OFFLINE is set"
        elif _LOOKS.get() and not isinstance(error, errors.DryRunError):
            why = "nothing is downloaded to look at it"
        raise NotFoundError(
            f"run.model is {name}; no such folder, and as a name on the Hugging Face Hub {part} in the cache "
            f"{constants.HF_HUB_CACHE}, while {why}. {_by_hand(name, revision)}"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = (
            f". If it is a folder, write ./{name}; if it is private, set HF_TOKEN" if status in (401, 403, 404) else ""
        )
        raise PreconditionError(f"run.model is {name}; the Hugging Face Hub answers {status}{hint}") from None
    except OSError as error:
        raise PreconditionError(
            f"run.model is {name}; it cannot be kept in the cache {constants.HF_HUB_CACHE}: {error}; HF_HOME moves it"
        ) from None


def _by_hand(name: str, revision: str) -> str:
    folder = f"models/{name.rpartition('/')[2]}"
    at = f" --revision {revision}" if revision else ""
    return f"Where there is a network, run `hf download {name}{at} --local-dir {folder}`, and set run.model to {folder}"
