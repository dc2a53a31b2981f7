"""When Python's garbage collector may run."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports: up to a million new objects, all to stay, which the collector would walk now, and later again.

    It costs a tenth of the time to import torch and transformers, and 1.3 s with vLLM.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
