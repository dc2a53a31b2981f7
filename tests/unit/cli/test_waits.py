"""Every wait of a run has a setting that fits slow steps and large models, and says which."""

import pytest

from services.cli.monitor import Monitor
from services.cli.recipe import Recipe
from shared.errors import DeadlineError
from shared.recipes import load

SLOW = {  # seconds; steps of ten minutes, and models that load for twenty
    "supervisor.progress_seconds": 7200,
    "supervisor.step_seconds": 7200,
    "supervisor.drain_seconds": 3600,
    "supervisor.liveness_seconds": 600,
    "generation.start_seconds": 3600,
    "generation.watchdog_seconds": 600,
    "generation.stall_seconds": 600,
    "generation.weights_wait_seconds": 3600,
    "generation.vllm.answer_seconds": 3600,
    "environments.start_seconds": 3600,
    "environments.watchdog_seconds": 600,
    "environments.drain_seconds": 3600,
    "environments.weights_wait_seconds": 3600,
    "environments.answer_seconds": 3600,
    "environments.turn_seconds": 3600,
    "environments.episode_seconds": 86400,
    "learner.start_seconds": 3600,
    "learner.watchdog_seconds": 600,
    "learner.drain_seconds": 3600,
    "learner.parallel.timeout_seconds": 7200,
    "learner.checkpoints.step_seconds": 7200,
    "learner.checkpoints.disk_seconds": 3600,
    "learner.transfer.timeout_seconds": 3600,
    "curriculum.evaluation.answer_seconds": 3600,
    "curriculum.evaluation.patience_seconds": 3600,
    "curriculum.start_seconds": 3600,
    "reward.start_seconds": 3600,
    "reward.timeout_seconds": 3600,
}


def test_every_wait_can_be_as_long_as_slow_runs_need() -> None:
    load(Recipe, None, {}, ["run.model=none", *(f"{name}={seconds}" for name, seconds in SLOW.items())])


@pytest.mark.parametrize("name", ["progress_seconds", "step_seconds"])
def test_a_run_that_gives_up_names_the_setting(name: str) -> None:
    recipe = load(Recipe, None, {}, ["run.model=none", f"supervisor.{name}=0.001"])
    monitor = Monitor(recipe)
    monitor._busy = name == "step_seconds"
    monitor._moved -= 1
    with pytest.raises(DeadlineError, match=rf"raise supervisor\.{name}"):
        monitor._require_progress()
