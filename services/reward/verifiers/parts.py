"""What verifiers that are made of others have in common: the parts judge together, and keep what they say."""

import asyncio
from collections.abc import Mapping

from services.reward.verifiers.base import Item, Parts, Verdict


async def judge(parts: Mapping[str, tuple[str, Item]], others: Parts) -> dict[str, Verdict]:
    """The verdict of each part, all at the same time.

    Args:
        parts: the verifier of each part, and what it judges, by the part's name.

    Raises:
        Exception: what the first part raised that has no verdict: its type says whether the task was at fault.
    """

    async def one(verifier: str, item: Item) -> Verdict:
        (verdict,) = await others.verdicts(verifier, [item])
        return verdict

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(one(*part)) for name, part in parts.items()}
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return {name: task.result() for name, task in tasks.items()}


def kept(verdicts: Mapping[str, Verdict], correct: str) -> dict[str, float]:
    """The values of the whole: "<part>.reward" and "<part>.<value>", `correct` of one part, `valid` where all are."""
    values = {
        f"{name}.{key}": value
        for name, verdict in verdicts.items()
        for key, value in {"reward": verdict.reward, **verdict.parts}.items()
    }
    values["correct"] = verdicts[correct].parts["correct"]
    values["valid"] = min(verdict.parts.get("valid", 1.0) for verdict in verdicts.values())
    return values
