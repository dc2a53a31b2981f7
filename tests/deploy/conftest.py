"""Every combination of deploy/k8s, rendered, with the settings that its services would have."""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from services.cli.recipe import Recipe
from shared.recipes import load
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


@pytest.fixture(scope="session", params=COMBINATIONS, ids="+".join)
def stack(request: pytest.FixtureRequest, renderings: dict[Combination, Future[list[Resource]]]) -> Stack:
    return Stack(renderings[request.param].result())


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
