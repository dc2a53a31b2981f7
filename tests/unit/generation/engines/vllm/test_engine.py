"""The vLLM engine without its engine: imports, rows, plausibility and refused settings."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import RouterExport, RouterTrace, VersionSpan, spans_between
from services.generation.engines.vllm.output import plausible, to_layout
from services.generation.engines.vllm.rows import unpack_rows
from services.generation.engines.vllm.settings import VllmSettings
from shared.errors import MissingDependencyError, PreconditionError
from tests.support.vllm import new_engine


@pytest.mark.parametrize("module", ["base", "torch.engine", "vllm.engine", "vllm.launch", "vllm.limits", "vllm.output"])
def test_importing_an_engine_does_not_import_vllm(module: str) -> None:
    code = f"import sys, services.generation.engines.{module}; sys.exit('vllm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_is_imported_after_its_environment_is_set() -> None:
    imported = "services.generation.service, services.generation.engines.vllm.engine"
    code = f"import sys, {imported}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_vllm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # how Python marks a module that cannot be imported
    with pytest.raises(MissingDependencyError, match="make install ENGINE=vllm"):
        new_engine(tmp_path)


def test_versions_of_a_piece() -> None:
    starts = [("3", 0), ("4", 5), ("6", 7)]
    assert spans_between(starts, 0, 9) == (VersionSpan(3, 5), VersionSpan(4, 2), VersionSpan(6, 2))
    assert spans_between(starts, 4, 6) == (VersionSpan(3, 1), VersionSpan(4, 1))
    assert spans_between(starts, 7, 8) == (VersionSpan(6, 1),)
    assert spans_between(starts[:1], 2, 2) == ()


@pytest.mark.parametrize(("rows", "tokens"), [(None, 1), (np.zeros((2, 1, 6), np.uint8), 3)])
def test_rows_that_do_not_match_the_tokens_are_refused(rows: np.ndarray | None, tokens: int) -> None:
    with pytest.raises(PreconditionError, match=f"{tokens} tokens"):
        unpack_rows(rows, RouterLayout((0,), 8, 2, ScoreFunction.SOFTMAX), RouterExport.TOPK, tokens)


def test_a_sample_that_never_began_has_a_trace_of_no_rows() -> None:
    trace = unpack_rows(None, RouterLayout((0, 2), 8, 2, ScoreFunction.SOFTMAX), RouterExport.TOPK, 0)
    assert trace.expert_ids.shape == trace.scores.shape == (0, 2, 2)


def test_a_score_function_that_nobody_defined_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="sqrtsoftplus"):
        to_layout(tmp_path, ([0], 8, 2, "sqrtsoftplus"))


def test_expert_ids_above_a_byte_survive() -> None:
    scores = np.array([[[-0.5, -2.0]]], np.float16)
    rows = np.concatenate([np.array([[[300, 7]]], np.uint16), scores.view(np.uint16)], axis=-1).view(np.uint8)
    trace = unpack_rows(rows, RouterLayout((0,), 512, 2, ScoreFunction.SOFTMAX), RouterExport.TOPK, 1)
    assert trace.expert_ids.tolist() == [[[300, 7]]]
    assert trace.expert_ids.dtype == np.uint16
    np.testing.assert_array_equal(trace.scores, scores)


def test_rows_that_were_never_written_are_not_plausible() -> None:
    layout = RouterLayout((0,), 8, 2, ScoreFunction.SOFTMAX)
    scores = np.full((1, 1, 2), -1.0, np.float16)
    assert plausible(RouterTrace(layout, np.array([[[3, 1]]], np.uint8), scores))
    assert plausible(RouterTrace(layout, np.array([[[3, 1]]], np.uint8), None))
    assert not plausible(RouterTrace(layout, np.zeros((1, 1, 2), np.uint8), scores))
    assert not plausible(RouterTrace(layout, np.zeros((1, 1, 2), np.uint8), None))
    assert not plausible(RouterTrace(layout, np.array([[[3, 1]]], np.uint8), scores * np.nan))


@pytest.mark.parametrize(
    "settings",
    [
        {"data_parallel_size": 2},
        {"speculative_tokens": 3},
        {"model_runner": "v2"},
        {"enable_chunked_prefill": True},
        {"enable_expert_parallel": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_the_capture_does_not_follow_is_refused_by_name(settings: dict[str, Any]) -> None:
    VllmSettings().refuse_inexact(on_cpu=True)
    with pytest.raises(PreconditionError, match=rf"generation\.vllm\.{next(iter(settings))} is .*set it to"):
        VllmSettings(**settings).refuse_inexact(on_cpu=True)


def test_some_are_for_gpus_only() -> None:
    VllmSettings(enable_chunked_prefill=True, enable_expert_parallel=True, model_runner="v2").refuse_inexact(
        on_cpu=False
    )
