"""What a processor has, from what Linux says of it."""

from pathlib import Path

import pytest
import torch

from shared.processor import processor

AVX512 = "avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("sse sse2 avx", "no vector instructions that vLLM has kernels for"),
        ("avx avx2 fma", "AVX2"),
        (f"avx2 fma {AVX512}", "AVX2, AVX-512"),
        (f"avx2 fma {AVX512} avx512_bf16", "AVX2, AVX-512, AVX-512 BF16"),
        (f"avx2 fma {AVX512} avx512_bf16 amx_bf16 amx_tile amx_int8", "AVX2, AVX-512, AVX-512 BF16, AMX"),
        (f"avx2 fma {AVX512} amx_tile", "AVX2, AVX-512"),
    ],
)
def test_it_is_described_by_its_instructions(tmp_path: Path, flags: str, said: str) -> None:
    core = f"processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu {flags}\n\n"
    (tmp_path / "cpuinfo").write_text(core + core.replace("A Processor", "Another"))
    assert str(processor(tmp_path / "cpuinfo")) == f"A Processor: {said}"


def test_without_a_list_nothing_is_claimed(tmp_path: Path) -> None:
    assert processor(tmp_path / "none").instructions == frozenset()


def test_this_machine_is_seen_as_torch_sees_it() -> None:
    found = processor().instructions
    assert ("AVX2" in found) == torch.cpu._is_avx2_supported()
    assert ("AVX-512" in found) == torch.cpu._is_avx512_supported()
    assert ("AMX" in found) == torch.cpu._is_amx_tile_supported()
