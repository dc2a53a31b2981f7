"""When a process gives freed memory back."""

import numpy as np

from shared.process.allocator import FreedMemory, resident_bytes


def test_what_a_step_needs_is_kept_and_what_steps_leave_behind_is_returned() -> None:
    memory = FreedMemory()
    seen = [900, 400, 480, 500, 501, 300, 375, 376, 600, 700]
    returned = [size for size in seen if memory.has_grown(size)]
    # After the first step; above 1.25 times 400; above 1.25 times 300; 600 is then the usual size.
    assert returned == [900, 501, 376]


def test_resident_bytes_are_those_of_this_process() -> None:
    before = resident_bytes()
    block = np.ones(64 << 20, np.uint8)
    assert 48 << 20 < resident_bytes() - before < 80 << 20
    del block
