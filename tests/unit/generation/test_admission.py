"""How many groups the worker of generation takes."""

import pytest

from services.generation.admission import AdmissionControl
from services.generation.engines.base import EngineLoad


@pytest.mark.parametrize(
    ("load", "held", "sampling", "room"),
    [
        (EngineLoad(0, 0), 0, 0, 18),  # 128 slots and 16 ahead
        (EngineLoad(120, 0), 15, 15, 3),
        (EngineLoad(120, 0), 18, 15, 0),  # three groups on their way fill it
        (EngineLoad(128, 16), 18, 18, 0),
        (EngineLoad(128, 0), 128, 128, 2),  # stragglers of many groups: room is counted in sequences
        (EngineLoad(40, 20), 8, 8, 0),  # more waits than is kept ahead, for want of memory
        (EngineLoad(40, 0, kv_cache_usage=0.95), 5, 5, 0),
        (EngineLoad(40, 0, kv_cache_usage=0.95), 0, 0, 4),  # direct calls have the rest
        (EngineLoad(128, 500), 1, 1, 3),  # as above
        (EngineLoad(0, 0), 30, 0, 0),  # the next stream is full, and the results pile up
    ],
)
def test_how_many_groups_the_worker_takes(load: EngineLoad, held: int, sampling: int, room: int) -> None:
    assert max(0, AdmissionControl(128, 8, 0.9).room_for_groups(load, held, sampling)) == room
