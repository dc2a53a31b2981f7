"""Services that share a process, as in tests, load models at the same time."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from transformers import PreTrainedModel

from services.generation.engines.torch.model import load_folder
from services.learner.model.policy import load
from tests.support.models import save_model
from tests.support.settings import learner_settings


def test_models_that_load_at_once_leave_transformers_as_it_was(tmp_path: Path) -> None:
    folder, before = save_model(tmp_path, "qwen3_dense"), PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as threads:
        loads: list[Future[object]] = [threads.submit(load, folder, learner_settings()) for _ in range(4)]
        loads += [threads.submit(lambda: load_folder(folder, "cpu")) for _ in range(4)]
        assert not [error for one in loads if (error := one.exception())]
    assert PreTrainedModel.tie_weights is before
