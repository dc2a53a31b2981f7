"""vLLM made to believe in a lesser processor than it runs on, in this process and in its child.

What vLLM asks of the processor it asks through `torch.cpu`. The child is given a level by the environment, and this
module, which its entry is in, takes it up before vLLM is imported there.
"""

import os
from typing import Any

import pytest
import torch

from services.generation.engines.vllm import launch
from shared.processor import processor

_LEVEL = "ROUTERSHIFT_TEST_PROCESSOR"
# By level: what the processor needs, what vLLM is told, and the library of kernels that it then loads.
_NEEDS = {"avx2": "AVX2", "avx512": "AVX-512", "amx": "AMX"}
_TOLD = {
    "avx2": set[str](),
    "avx512": {"_is_avx512_supported"},
    "amx": {"_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"},
}
LIBRARIES = {"avx2": "_C_AVX2.abi3.so", "avx512": "_C_AVX512.abi3.so", "amx": "_C.abi3.so"}
# Read by torch and oneDNN when they choose among their own kernels.
_CAPABILITIES = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "amx": {},
}
_QUESTIONS = ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported")


def pretend(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For engines started from here on. Skips the test where this machine has less than that."""
    if _NEEDS[level] not in processor().instructions:
        pytest.skip(f"this machine has no {_NEEDS[level]}: {processor()}")
    for question in _QUESTIONS:
        monkeypatch.setattr(torch.cpu, question, _answer(level, question))
    for name, value in (_CAPABILITIES[level] | {_LEVEL: level}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "run_child", run_child)


_run_child = launch.run_child


def run_child(*args: Any, **kwargs: Any) -> None:
    """The entry of the child: finding it has imported this module there."""
    _run_child(*args, **kwargs)


def _answer(level: str, question: str) -> Any:
    return lambda: question in _TOLD[level]


if _LEVEL in os.environ:
    for _question in _QUESTIONS:
        setattr(torch.cpu, _question, _answer(os.environ[_LEVEL], _question))
