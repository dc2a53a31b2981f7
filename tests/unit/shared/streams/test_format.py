"""What a run has in Redis says its format, and a version that does not know it leaves the run alone."""

import pytest

from shared.errors import PreconditionError
from shared.streams import run as runs
from shared.streams.run import Run
from tests.support.runs import prompt


async def test_a_run_without_a_format_is_of_the_first_one(run: Run) -> None:
    """As those that versions before formats began."""
    await run.admit(0, prompt(0), 10)
    assert (await run.progress()).format is None
    await run.claim_format()
    await run.claim_format()
    assert (await run.progress()).format == runs.FORMAT == 1


async def test_a_later_version_goes_on_and_an_earlier_one_then_refuses(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run.claim_format()
    with monkeypatch.context() as later:
        later.setattr(runs, "FORMAT", 2)
        await run.claim_format()
    with pytest.raises(PreconditionError, match=r"has format 2 in Redis, and this version reads up to 1: a later one"):
        await run.claim_format()
    assert (await run.progress()).format == 2
