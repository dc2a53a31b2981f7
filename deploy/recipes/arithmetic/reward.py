"""The reward of the arithmetic recipe: 1 for the right sum, and a little for digits that are in their place."""

import re

_NEAR = 0.3  # for all digits but one, less: a group of wrong answers still says which is closer


def score(response: str, reference: int | str) -> dict[str, float]:
    """Judges the last number of a response.

    Args:
        response: the text that was sampled.
        reference: the sum.

    Returns:
        `reward`, and the parts `correct`, and `digits`: the share of the sum's digits that stand in their place.
    """
    numbers = re.findall(r"\d+", response)
    wanted, given = str(reference), numbers[-1] if numbers else ""
    right = wanted == given
    digits = 0.0
    if len(given) <= len(wanted):
        digits = sum(w == g for w, g in zip(reversed(wanted), reversed(given), strict=False)) / len(wanted)
    return {"reward": 1.0 if right else _NEAR * digits, "correct": float(right), "digits": digits}
