"""The reward of long_tail.toml: how many of the characters are ones."""


def score(response: str, reference: object) -> dict[str, float]:
    """Gives nearly every response another reward, whatever it says."""
    share = response.count("1") / max(len(response), 1)
    return {"reward": share, "correct": float(share > 0.1)}
