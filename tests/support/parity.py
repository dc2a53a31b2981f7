"""What a family of models is held to on vLLM, where nothing is rounded."""

from routershift.routing.layout import ScoreFunction
from tests.bench.parity import LAYERS, Exactness, Parity

_SIGMOID = {"deepseek_v3", "glm4_moe", "llama4"}
_FIRST_DENSE = {"deepseek_v2", "deepseek_v3", "glm4_moe"}


def check_exactness(found: Exactness) -> None:
    assert found.same_topk == 1
    assert found.max_logprob_error < 2e-4  # yarn and latent attention sum in another order
    assert found.max_logit_error < 3e-4
    assert found.max_router_error < 5e-3  # a logit of 8 as float16 is off by 0.002


def check_parity(family: str, found: Parity) -> None:
    """Samples, routes and layout, before updates and after."""
    assert found.layout.layer_ids == tuple(range(family in _FIRST_DENSE, LAYERS))
    assert found.layout.score_function == (ScoreFunction.SIGMOID if family in _SIGMOID else ScoreFunction.SOFTMAX)
    assert found.after_update is not None
    for exactness in (found.before, found.after_update):
        check_exactness(exactness)
