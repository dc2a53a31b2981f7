"""What all ranks of a learner must have alike."""

from pathlib import Path

from services.learner.checkpointing.identity import fingerprint
from services.learner.distributed.ranks import Ranks
from shared.errors import InvalidInputError


def check_same_model(ranks: Ranks, folder: Path) -> None:
    """Whether all ranks read the same model: each reads its part of the folder, on its machine. Collective.

    Raises:
        InvalidInputError: on rank 0, where some rank has another.
    """
    if ranks.size == 1:
        return
    found = ranks.gather(fingerprint(folder).encode())
    if others := [rank for rank, each in enumerate(found) if each != found[0]]:
        raise InvalidInputError(
            f"run.model {folder} is not the same model for ranks {', '.join(map(str, others))} as for rank 0; copy it "
            "to their machines again"
        )
