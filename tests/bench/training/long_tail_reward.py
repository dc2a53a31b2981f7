"""The reward of long_tail.toml: a number that follows from the response, and is another for each."""

import zlib


def score(response: str, reference: object) -> dict[str, float]:
    """Gives every response another reward, short ones too, so that hardly a group has equal ones."""
    reward = zlib.crc32(response.encode()) / 2**32
    return {"reward": reward, "correct": float(reward > 0.5)}
