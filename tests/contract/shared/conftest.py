"""Certificates and tokens of this session."""

from pathlib import Path

import pytest

from tests.support.access import OPERATOR, SAMPLER, SCORER
from tests.support.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "own")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# who\n\nsample {SAMPLER}\nscore,sample {SCORER}\noperate {OPERATOR}\n")
    return file
