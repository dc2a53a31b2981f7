"""GPUs that a plan can be made for: what their vendors' data sheets say, dense and in one direction.

A further GPU is a further row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.errors import NotFoundError

_GIB = 1 << 30
PER_MACHINE = 8  # GPUs that share a machine, and its links


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. Rates are peaks: `throughput.Assumptions` has the shares that are reached."""

    name: str
    memory: int  # bytes
    flops: float  # bfloat16 operations a second, without sparsity
    bandwidth: float  # bytes a second from its own memory
    link: float  # bytes a second to another GPU of its machine
    network: float  # bytes a second to another machine


# NVIDIA: data sheets of A100 80GB SXM (2021), L40S (2023), H100 SXM (2023), H200 SXM (2024), HGX B200 (2025).
# AMD: data sheet of Instinct MI300X (2023). Network: one port of 200 Gb/s (A100) or 400 Gb/s for each GPU.
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 80 * _GIB, 312e12, 2.04e12, 300e9, 25e9),
        Gpu("l40s", 48 * _GIB, 362e12, 0.86e12, 32e9, 50e9),
        Gpu("h100", 80 * _GIB, 989e12, 3.35e12, 450e9, 50e9),
        Gpu("h200", 141 * _GIB, 989e12, 4.8e12, 450e9, 50e9),
        Gpu("b200", 180 * _GIB, 2250e12, 7.7e12, 900e9, 50e9),
        Gpu("mi300x", 192 * _GIB, 1307e12, 5.3e12, 448e9, 50e9),
    )
}


def gpu_of(name: str) -> Gpu:
    """Raises NotFoundError for an unknown GPU; names those that are known."""
    if (gpu := GPUS.get(name.lower())) is None:
        raise NotFoundError(f"--gpu is {name!r}; known are {', '.join(GPUS)}")
    return gpu
