"""The tokenizer of a model folder, as transformers reads it: the one home of that rule.

tokenizer.json alone is not enough: its sections for truncation and padding are for training pipelines and do not apply
to a prompt, and tokens may stand only in tokenizer_config.json (added_tokens_decoder), added_tokens.json or
special_tokens_map.json. Importing this module needs no torch.
"""

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shared.errors import CorruptDataError, NotFoundError, PreconditionError
from shared.models.folder import check_tokenizer_files
from shared.models.loading import load_tokenizer_files

# Above all but odd texts, whose tokens are few and long. What has more is too long, which is known without
# tokenizing it.
CHARACTERS_PER_TOKEN = 64
# Characters that are tokenized within the event loop: about a millisecond.
_SHORT = 4096


def load_tokenizer(model: Path) -> Any:
    """The `PreTrainedTokenizerFast` of a model folder; runs no code of the folder.

    Imports transformers, and with it torch where that is installed.

    Raises:
        NotFoundError: there is no tokenizer.json.
        CorruptDataError: a file of the tokenizer is broken; names it.
        PreconditionError: it needs code of the folder.
    """
    path = model / "tokenizer.json"
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; run.model must hold a fast tokenizer beside the weights")
    check_tokenizer_files(model)
    try:
        tokenizer = load_tokenizer_files(model)
    except PreconditionError:
        raise
    except Exception as error:  # what a file holds decides which; tokenizers itself raises Exception
        reason = " ".join(str(error).split())[:200]
        raise CorruptDataError(
            f"{path} and the files beside it make no tokenizer ({type(error).__name__}: {reason}); copy them again "
            "from where the model came from"
        ) from error
    if not tokenizer.is_fast:
        raise CorruptDataError(f"{path} makes a {type(tokenizer).__name__}, which has no fast tokenizer; expected one")
    return tokenizer


def backend(tokenizer: Any) -> Tokenizer:
    """What encodes and decodes for a tokenizer of transformers, with the token ids that a call to that would give."""
    tokens: Tokenizer = tokenizer.backend_tokenizer
    tokens.no_truncation()
    tokens.no_padding()
    tokens.encode_special_tokens = tokenizer.split_special_tokens
    return tokens


async def encode(tokens: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text; of a long one in a thread, as an event loop has others to serve."""

    def now() -> list[int]:
        return list(tokens.encode(text, add_special_tokens=add_special_tokens).ids)

    return now() if len(text) <= _SHORT else await asyncio.to_thread(now)


def read_tokenizer(model: Path) -> Tokenizer | None:
    """The tokenizer of a model folder; None where it has no tokenizer.json. Raises CorruptDataError as above."""
    return backend(load_tokenizer(model)) if (model / "tokenizer.json").is_file() else None


@lru_cache(maxsize=4)
def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that are left out of a response's text."""
    return frozenset(special_texts(tokenizer))


@lru_cache(maxsize=4)
def special_texts(tokenizer: Tokenizer) -> dict[int, str]:
    """The text of each of them."""
    return {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
