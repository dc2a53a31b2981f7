"""The chart: it is the kustomize tree in other words, refuses what is wrong, and its releases share a namespace."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.helm.release import CHART, RECIPES, alone
from deploy.k8s import manifests
from tests.support import chart
from tests.support.chart import EXTERNAL, GRAFANA, VALUES, by_name
from tests.support.kubernetes import (
    K8S,
    OPTIONAL,
    OVERLAYS,
    Combination,
    Resource,
    fault,
    needs_kubectl,
    render,
)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("components", [(), *((each,) for each in OPTIONAL), OPTIONAL], ids="+".join)
def test_it_is_the_kustomize_tree(
    overlay: str, components: tuple[str, ...], renderings: dict[Combination, Future[list[Resource]]]
) -> None:
    values = dict(chain.from_iterable(VALUES[each].items() for each in components))
    kustomized = by_name(alone(renderings[(overlay, *components)].result()))
    of_the_cluster = {("Namespace", "routershift"), ("PriorityClass", "routershift-run"), ("Pod", "fill-models")}
    assert by_name(alone(chart.rendered(overlay, values))) == {
        key: each for key, each in kustomized.items() if key not in of_the_cluster
    }


@needs_kubectl
def test_a_queue_is_that_of_the_component(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "own").mkdir()
    choice = {"resources": ["../k8s/overlays/multinode"], "components": ["../k8s/components/kueue"]}
    (tmp_path / "own/kustomization.yaml").write_text(yaml.safe_dump(choice))
    kustomized, released = (
        by_name(alone(each)) for each in (render(tmp_path / "own"), chart.rendered("multinode", VALUES["kueue"]))
    )
    for key in (("JobSet", "learner"), ("Deployment", "generation")):
        assert released[key] == kustomized[key]


def test_the_base_is_rendered_from_it() -> None:
    chart.run("version")  # skips where there is no helm
    written = {path.name: list(yaml.safe_load_all(path.read_text())) for path in manifests.FILES}
    assert written == manifests.files(), "run make manifests"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_helm_lints_it(overlay: str) -> None:
    own = ["--set=registry=a", f"--set-file=recipe={RECIPES / overlay}/recipe.toml"]
    ran = chart.run("lint", "--strict", CHART, f"--values={CHART.parent / overlay}.yaml", *own)
    assert ran.returncode == 0, ran.stdout
    assert "[WARNING]" not in ran.stdout, ran.stdout


@pytest.mark.parametrize("overlay", ["dev", "multinode"])
@pytest.mark.parametrize("values", [EXTERNAL, GRAFANA, {**EXTERNAL, **VALUES["tls"]}], ids=["redis", "grafana", "both"])
def test_schemas_accept_other_values(overlay: str, values: dict[str, Any]) -> None:
    found = chart.rendered(overlay, values)
    assert [why for each in found if (why := fault(json.dumps(each, sort_keys=True)))] == []


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"regisrty": "a"}, "'regisrty' not allowed"),
        ({"learner": {"gpu": 1}}, "at '/learner': additional properties 'gpu' not allowed"),
        ({"redis": {"url": {"name": "a"}}}, "at '/redis/url': additional properties 'name' not allowed"),
        ({"generation": {"resources": {"limits": {"cpus": "1"}}}}, "additional properties 'cpus' not allowed"),
        ({"learner": {"gpus": "one"}}, "at '/learner/gpus': got string, want integer"),
        ({"learner": {"env": {"NCCL_DEBUG": 1}}}, "at '/learner/env/NCCL_DEBUG': got number, want string"),
        ({"learner": {"rdma": {"count": 1}}}, "properties 'resource' required"),
        ({"digests": {"learner": "latest"}}, "at '/digests/learner'"),
        ({"registry": ""}, "registry: it is empty; name the registry of your images"),
        ({"recipe": ""}, "recipe: it is empty; give the file"),
        ({"recipe": "a = ["}, "recipe: it is no TOML"),
        ({"recipe": '[run]\nmodel = "tiny"'}, 'run.model is "tiny"; expected a folder below /models'),
        ({"generation": {"gpus": 2}}, "generation.gpus is 2 and generation.vllm.tensor_parallel_size of the recipe 1"),
        ({"learner": {"gpus": 8}}, "learner.gpus is 8 and learner.parallel.processes of the recipe 4"),
        ({"learner": {"gpus": 0}}, 'learner.gpus is 0 and learner.device of the recipe "cuda"'),
        ({"redis": {"enabled": False}}, "redis.url.secret: it is empty while redis.enabled=false"),
        ({"redis": {"url": {"secret": "a"}}}, 'redis.url.secret is "a" while redis.enabled'),
        ({"backup": {"enabled": True}} | EXTERNAL, "backup.enabled: it is of the release's own Redis"),
        ({"model": {"download": {"enabled": True}}}, "model.download.repository: it is empty"),
        ({"tls": {"enabled": True}, "routes": {"gateway": {"enabled": True}}}, "routes: with tls.enabled"),
    ],
)
def test_what_is_wrong_is_refused_by_name(values: dict[str, Any], why: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"registry": "a", "recipe": (K8S / "overlays/gpu/recipe.toml").read_text()} | values))
    ran = chart.run("template", "a", CHART, f"--values={CHART.parent}/gpu.yaml", f"--values={own}")
    assert ran.returncode != 0
    assert why in ran.stderr


def test_a_value_that_is_not_said_is_in_the_schema() -> None:
    """And none is in the schema that values.yaml does not show."""

    def keys(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        for key, each in schema.get("properties", {}).items():
            yield (*path, key)
            yield from keys(each, (*path, key))

    def shown(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for key, each in values.items():
            yield (*path, key)
            if isinstance(each, dict):
                yield from shown(each, (*path, key))

    whole = json.loads((CHART / "values.schema.json").read_text())
    definitions = whole["definitions"]
    free = ("digests", "rdma", "ephemeral-storage", "global")
    allowed = {path for path in keys(whole) if not set(path) & set(free)}
    assert allowed == {path for path in shown(yaml.safe_load((CHART / "values.yaml").read_text())) if path in allowed}
