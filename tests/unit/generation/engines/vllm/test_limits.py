"""What is known of vLLM without importing it is what vLLM itself says."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from services.generation.engines.vllm.limits import CPU_HEAD_SIZES


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm")
def test_sizes_of_heads_are_those_that_vllm_has_kernels_for() -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "v1/attention/backends/cpu_attn.py"
    functions = (node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.FunctionDef))
    (sizes,) = (function.body[-1] for function in functions if function.name == "get_supported_head_sizes")
    assert isinstance(sizes, ast.Return)
    assert sizes.value is not None
    assert tuple(ast.literal_eval(sizes.value)) == CPU_HEAD_SIZES
