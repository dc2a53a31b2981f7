"""How much work the engine is given: by direct calls, which are refused beyond a bound, and by the stream worker."""

from dataclasses import dataclass
from math import ceil

from services.generation.engines.base import EngineLoad
from services.generation.settings import GenerationSettings
from shared.errors import InvalidInputError, OverloadedError

# The worker keeps an eighth of the engine's slots waiting, so that one that comes free need not wait for Redis.
_AHEAD = 8
# Where direct calls fill the engine, the worker still has a quarter of it.
_SHARE = 4


def admit(load: EngineLoad, sequences: int, settings: GenerationSettings) -> None:
    """Admits a direct call of so many sequences.

    Raises:
        InvalidInputError: they would never fit.
        OverloadedError: they do not fit now.
    """
    most = settings.max_num_seqs + settings.max_waiting
    held = load.running + load.waiting
    if sequences > most:
        raise InvalidInputError(
            f"sampling.n is {sequences}; allowed: 1 to {most}, what generation.max_num_seqs = {settings.max_num_seqs} "
            f"and generation.max_waiting = {settings.max_waiting} hold together"
        )
    if held + sequences > most:
        raise OverloadedError(
            f"{load.running} sequences run and {load.waiting} wait; {sequences} more exceed generation.max_num_seqs = "
            f"{settings.max_num_seqs} and generation.max_waiting = {settings.max_waiting} together"
        )


@dataclass(frozen=True, slots=True)
class AdmissionControl:
    """How many groups to take from the stream, so that the engine stays busy and few sequences wait in it."""

    slots: int  # sequences that the engine samples at once
    samples: int  # sequences of a group
    kv_cache_high_water: float  # share of the KV cache in use above which nothing is added

    def room_for_groups(self, load: EngineLoad, held: int, sampling: int) -> int:
        """How many more groups to read now.

        Args:
            load: of the engine, from the stream and from direct calls together.
            held: groups that were read and not handed over yet.
            sampling: those of them that the engine has. The others are on their way into it or out of it, and count as
                if it had them: a reader that is behind must not make the results pile up here.
        """
        share = max(1, self.slots // (_SHARE * self.samples)) - held
        ahead = max(1, self.slots // _AHEAD)
        if load.kv_cache_usage > self.kv_cache_high_water or load.waiting > ahead:
            return max(0, share)
        taken = load.running + load.waiting + max(0, held - sampling) * self.samples
        return max(share, ceil((self.slots + ahead - taken) / self.samples))
