"""The stages of the Dockerfile."""

import re

from tests.support.containers import DOCKERFILE


def stages() -> dict[str, str]:
    """The lines of each named stage."""
    parts = re.split(r"(?m)^FROM \S+ AS (\S+)$", DOCKERFILE.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))
