"""What the processor of this machine can compute with: vLLM and torch choose their kernels by it."""

from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# By what people call them: the flags that Linux lists where the processor and the kernel have all of it.
_SETS = {
    "AVX2": {"avx2", "fma"},
    "AVX-512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "AVX-512 BF16": {"avx512f", "avx512_bf16"},
    "AMX": {"amx_tile", "amx_bf16", "amx_int8"},
}


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor and the vector instructions that kernels are chosen by."""

    name: str
    instructions: frozenset[str]  # of "AVX2", "AVX-512", "AVX-512 BF16", "AMX"; none on another architecture

    def __str__(self) -> str:
        known = [name for name in _SETS if name in self.instructions]
        return f"{self.name}: {', '.join(known) or 'no vector instructions that vLLM has kernels for'}"


def processor(cpuinfo: Path = _CPUINFO) -> Processor:
    """The first processor that `cpuinfo` lists, in the form of Linux; an unknown one where there is no such file."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    found = frozenset(name for name, needed in _SETS.items() if needed <= flags)
    return Processor(fields.get("model name", "unknown processor"), found)
