"""Every combination of deploy/k8s and releases of the chart, rendered, with their services' settings."""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from deploy.helm.release import alone
from services.cli.recipe import Recipe
from shared.recipes import load
from tests.support import chart
from tests.support.kubernetes import COMBINATIONS, K8S, Combination, Resource, Stack, render


@pytest.fixture(scope="session")
def renderings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Combination, Future[list[Resource]]]]:
    """All of them, made beside the tests in the order in which these ask."""
    folder = tmp_path_factory.mktemp("kustomizations")
    shutil.copytree(K8S, folder / "k8s")
    with ThreadPoolExecutor(2) as pool:
        yield {combination: pool.submit(_render, folder, combination) for combination in COMBINATIONS}
        pool.shutdown(cancel_futures=True)


def _render(folder: Path, combination: Combination) -> list[Resource]:
    overlay, *components = combination
    choice = {
        "resources": [f"../k8s/overlays/{overlay}", "../k8s/fill-models"],
        "components": [f"../k8s/components/{component}" for component in components],
    }
    own = folder / "+".join(combination)
    own.mkdir()
    (own / "kustomization.yaml").write_text(yaml.safe_dump(choice))
    return render(own)


@pytest.fixture(scope="session", params=[*COMBINATIONS, *chart.CASES], ids=lambda case: "+".join(case))
def stack(request: pytest.FixtureRequest, renderings: dict[Combination, Future[list[Resource]]]) -> Stack:
    """A combination, or a release in the place of one; with what the cluster has for all runs."""
    if request.param in renderings:
        return Stack(renderings[request.param].result())
    overlay, values = chart.CASES[request.param]
    return Stack([*_of_the_cluster(), *alone(chart.rendered(overlay, values))])


def _of_the_cluster() -> list[Resource]:
    return [yaml.safe_load((K8S / "base" / f"{name}.yaml").read_text()) for name in ("namespace", "priority-class")]


@pytest.fixture(scope="session")
def recipe(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the ConfigMap that all services mount."""
    (text,) = [each["data"]["recipe.toml"] for name, each in stack.of_kind("ConfigMap").items() if "recipe" in name]
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def settings(stack: Stack, recipe: Path) -> dict[str, Recipe]:
    """The settings of each service, from the recipe and its pods' environment; an unknown key of either is an error."""
    return {name: load(Recipe, recipe, pods.environment) for name, pods in stack.services_pods().items()}
