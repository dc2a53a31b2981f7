"""What services that are started alone write together, in any order, and what `run` makes of it later."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from services.cli.provenance import record, served, stored
from services.cli.recipe import Recipe
from services.curriculum.settings import Settings as CurriculumTables
from services.generation.settings import Settings as GenerationTables
from services.learner.settings import Settings as LearnerTables
from services.reward.settings import Settings as RewardTables
from shared import recipes
from shared.settings import BaseSettings
from shared.tracking import records

TABLES: dict[str, type[BaseSettings]] = {
    "reward": RewardTables,
    "curriculum": CurriculumTables,
    "learner": LearnerTables,
    "generation": GenerationTables,
}


def serve(service: str, recipe: Path, *flags: str) -> dict[str, Any]:
    settings = recipes.load(TABLES[service], recipe, {"REDIS_URL": "redis://me:hunter2@localhost"}, flags)
    served.add(service, settings, recipe)
    found: dict[str, Any] = json.loads((settings.run.path / records.PROVENANCE).read_text())
    return found


@pytest.mark.parametrize("order", [list(TABLES), list(reversed(TABLES))])
def test_services_write_one_record_together(recipe: Path, order: list[str]) -> None:
    for service in order:
        found = serve(service, recipe)
    assert "hunter2" not in json.dumps(found)
    assert (found["schema"], found["run"], found["parent"]) == (stored.SCHEMA, "mine", None)
    assert found["settings"].keys() >= {"run", "rollout", "curriculum", "data", "reward", "generation", "learner"}
    assert found["files"]["data.train.0.source"][0]["rows"] == 10
    assert [name for name in found["files"] if name.startswith("reward.verifiers.")]
    assert len(found["model"]["fingerprint"]) == 64
    assert found["services"].keys() == TABLES.keys()
    assert found["services"]["reward"]["environment"]["packages"]["numpy"]
    assert {"code", "python", "packages", "host", "devices"} == found["environment"].keys()
    assert [start["command"] for start in found["starts"]] == [f"serve {service}" for service in order]
    assert not any(start["settings_changed"] or start["environment_changed"] for start in found["starts"])


def test_another_start_of_a_service_says_what_differs(recipe: Path) -> None:
    serve("reward", recipe)
    created = serve("learner", recipe)["created"]
    found = serve("learner", recipe, "learner.optimizer.learning_rate=0.5")
    assert found["created"] == created
    (change,) = found["starts"][-1]["settings_changed"]
    assert (change["setting"], change["now"]) == ("learner.optimizer.learning_rate", 0.5)
    assert found["settings"]["learner"]["optimizer"]["learning_rate"] == 0.5


def test_a_service_without_the_model_tells_of_the_rest(recipe: Path) -> None:
    found = serve("reward", recipe, "run.model=./none")
    assert found["model"] == {"folder": "none", "fingerprint": None}
    assert serve("learner", recipe)["model"]["fingerprint"]
    assert serve("reward", recipe, "run.model=./none")["model"]["fingerprint"], "what is known stays"


@pytest.mark.parametrize("services", [["reward"], ["learner"], list(TABLES)])
def test_a_run_goes_on_where_services_were_alone(recipe: Path, services: list[str]) -> None:
    for service in services:
        serve(service, recipe)
    whole = recipes.load(Recipe, recipe, {}, [])
    records.append(whole.run.path / records.EVALUATIONS, {"version": 0})  # it has begun
    start = record.prepare(whole)
    assert start.changes == []
    start.write("run", recipe)
    written = stored.read(whole.run.path)
    assert written is not None
    assert [each["command"] for each in written["starts"]] == [*(f"serve {service}" for service in services), "run"]


@pytest.mark.parametrize("service", ["reward", "curriculum"])
def test_an_image_that_cannot_read_weights_tells_of_its_service(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    found = serve(service, recipe)
    assert found["services"][service]["environment"]
    assert found["model"]["fingerprint"] is None


def test_starts_without_end_do_not_fill_the_disk(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_KEPT_STARTS", 3)
    for _ in range(4):
        found = serve("reward", recipe)
    assert len(found["starts"]) == 3


def test_what_cannot_be_written_stops_no_service(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = recipes.load(RewardTables, recipe, {}, [])
    settings.run.path.mkdir(parents=True)
    (settings.run.path / records.PROVENANCE).write_text("{")
    with caplog.at_level(logging.WARNING):
        served.add("reward", settings, recipe)
    assert "what reward runs on is not in provenance.json of the run's folder" in caplog.text
    assert "is no record of a run" in caplog.text
