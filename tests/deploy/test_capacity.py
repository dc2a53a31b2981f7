"""The table of deploy/README.md that plans Redis, against what a response really takes."""

import re
from pathlib import Path

import numpy as np
import pytest

from routershift import wire
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, RouterTrace, ScoreDtype, VersionSpan

ROWS = re.findall(
    r"^\| ([^|]+) \| (\d+) x (\d+) \| ([\d,]+) \| ([\d,]+) \|$",
    (Path(__file__).parents[2] / "deploy/README.md").read_text(),
    re.MULTILINE,
)


def encoded(tokens: int, layers: int, top_k: int, scores: ScoreDtype) -> int:
    """Bytes of a completion of a model with up to 256 experts."""
    layout = RouterLayout(tuple(range(layers)), 256, top_k, ScoreFunction.SOFTMAX)
    routes = (tokens, layers, top_k)
    ids = np.broadcast_to(np.arange(top_k, dtype=np.uint8), routes)
    trace = RouterTrace(layout, ids, np.full(routes, -1, np.float16))
    ends = np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), (VersionSpan(1, tokens),)
    exported = trace.coded() if scores is ScoreDtype.UINT8 else trace
    return wire.encode_completion(Completion(0, *ends, FinishReason.STOP, exported, "")).ByteSize()


@pytest.mark.parametrize(("model", "layers", "top_k", "float16", "uint8"), ROWS, ids=[row[0] for row in ROWS])
def test_bytes_of_a_token(model: str, layers: str, top_k: str, float16: str, uint8: str) -> None:
    for scores, said in ((ScoreDtype.FLOAT16, float16), (ScoreDtype.UINT8, uint8)):
        more, less = (encoded(tokens, int(layers), int(top_k), scores) for tokens in (2000, 1000))
        assert (more - less) / 1000 == pytest.approx(int(said.replace(",", "")), abs=0.1), model


def test_the_table_is_there() -> None:
    assert len(ROWS) >= 4
