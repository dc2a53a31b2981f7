"""A verifier of code for a whole module."""

from collections.abc import Iterator

import pytest

from services.reward.verifiers.code.verifier import CodeSettings, CodeVerifier
from shared.errors import PreconditionError


@pytest.fixture(scope="module")
def code() -> Iterator[CodeVerifier]:
    verifier = CodeVerifier(CodeSettings(seconds=3, idle_seconds=2, timeout_seconds=300, partial=True))
    try:
        verifier.start()
    except PreconditionError as error:
        pytest.skip(str(error))
    yield verifier
    verifier.close()
