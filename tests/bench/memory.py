"""Peak memory of a step, exact on the CPU as on a GPU."""

import os
import tracemalloc
from collections.abc import Callable

import torch
from torch._C._profiler import _ExtraFields_Allocation
from torch.autograd.profiler import profile

# The profiler's notes on stderr say nothing about the step. It reads this when it is used for the first time.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_bytes(step: Callable[[], object], device: torch.device, held_bytes: int) -> int:
    """The most bytes that tensors hold at any moment of `step`: those that it finds and those that it makes.

    On a GPU the caching allocator counts that. On the CPU nothing does, and the resident set of the process moves with
    whatever malloc keeps for later. But the profiler is told of every block that torch's CPU allocator gives and takes
    back, and their running sum has a maximum that is the same to the byte in every run. To it come `held_bytes`, of
    what the step finds and keeps: weights, and the optimizer's moments. Batches are made in Python's and numpy's
    memory, which is not torch's; tracemalloc has their peak, in a second step as the profiler would count too. The two
    peaks need not be at one moment, so the sum is an upper bound. What kernels keep to themselves is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    with profile(profile_memory=True) as profiler:
        step()
    tensors = _peak(profiler)
    tracemalloc.start()
    step()
    _, arrays = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held_bytes + tensors + arrays


def _peak(profiler: profile) -> int:
    """The peak of all blocks allocated under the profiler. Those from before are not in it, nor is their end."""
    if profiler.kineto_results is None:
        raise RuntimeError("the profiler recorded nothing")
    events = list(profiler.kineto_results.experimental_event_tree())
    blocks = []
    while events:
        event = events.pop()
        events.extend(event.children)
        _, block = event.typed
        if isinstance(block, _ExtraFields_Allocation):
            blocks.append((event.start_time_ns, block.ptr, block.alloc_size))
    live: dict[int, int] = {}
    now = peak = 0
    for _, address, size in sorted(blocks, key=lambda block: block[0]):
        if size > 0:
            live[address] = size
            now += size
            peak = max(peak, now)
        else:
            now -= live.pop(address, 0)
    return peak
