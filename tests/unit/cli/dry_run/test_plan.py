"""`routershift run RECIPE --dry-run`: the plan, what must be mended, and that every recipe of ours passes."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.cli.dry_run import memory
from services.cli.dry_run.lines import Line
from services.cli.dry_run.plan import plan
from services.cli.main import main
from services.cli.recipe import Recipe
from services.learner.model.lora import add_lora
from services.learner.settings import LoraSettings
from services.planner.model import read
from shared.recipes import load
from shared.settings import SERVICES
from tests.support import cli
from tests.support.models import save_model

REPOSITORY = Path(__file__).parents[4]
RECIPES = sorted((REPOSITORY / "deploy/recipes").glob("*.toml"))
COUNTDOWN = REPOSITORY / "deploy/recipes/countdown.toml"
FREE = [f"{service}.{key}=0" for service in SERVICES for key in ("port", "metrics_port")]
TORCH = "generation.engine=torch"


def planned(*flags: str, recipe: Path = COUNTDOWN) -> list[Line]:
    return plan(load(Recipe, recipe, {}, [*FREE, TORCH, *flags]))


def mended(lines: list[Line]) -> list[str]:
    return [line.text for line in lines if line.kind == "MEND"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_nothing_to_mend(recipe: Path, tmp_path: Path) -> None:
    """Nothing is downloaded: a model or data of the Hub that the cache, which is empty here, lacks is a note."""
    flags = [part for flag in FREE for part in ("--set", flag)]
    done = cli.run("run", str(recipe), "--dry-run", *flags, cwd=tmp_path, changes={"HF_HOME": str(tmp_path)})
    assert done.returncode in (0, 2), done.stderr
    faults = [line for line in done.stdout.splitlines() if line.startswith("MEND")]
    # What this machine lacks is no fault of a recipe, nor is a model that a script makes first.
    passed_over = ("is not installed", "do not fit", f"{COUNTDOWN.parent}/arithmetic/model")
    assert [line for line in faults if not any(part in line for part in passed_over)] == []
    assert "responses to" in done.stdout


def test_the_plan_has_the_prompt_as_the_policy_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [part for flag in (*FREE, TORCH) for part in ("--set", flag)]
    assert main(["run", str(COUNTDOWN), "--dry-run", *flags]) == 0
    said = capsys.readouterr().out
    prompt = next(line for line in said.splitlines() if " prompt " in line).split("'")[1]
    ids = AutoTokenizer.from_pretrained(COUNTDOWN.parent / "countdown/model")(prompt).input_ids
    assert f"token ids {ids}" in said
    assert "= 20480 responses to 2560 prompts" in said
    assert said.endswith("nothing to mend: without --dry-run, this is what runs\n")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("run.model=nowhere", "run.model is nowhere"),
        ("run.task=sodoku", "run.task is 'sodoku'"),
        ("streams.max_bytes=65536", "streams.max_bytes is 65536, and a step takes"),
        ("rollout.max_tokens=60", "set rollout.max_tokens below"),
        ("generation.max_model_len=20", "leaves room for 20"),
        ("generation.router_export=none", "needs router scores"),
    ],
)
def test_what_must_be_mended(flag: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--set", "rollout.max_tokens=64"] if flag.startswith("rollout.max_tokens=60") else []
    flags = [part for each in (*FREE, TORCH, flag) for part in ("--set", each)]
    assert main(["run", str(COUNTDOWN), "--dry-run", *flags, *more]) == 2
    out = capsys.readouterr().out
    assert any(said in line for line in out.splitlines() if line.startswith("MEND")), out


def test_a_model_of_the_hub_that_is_not_here_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    lines = planned("run.model=hf://nobody/nothing-0B", "generation.max_model_len=64")
    assert mended(lines) == []
    (said,) = [line.text for line in lines if line.kind == "note"]
    assert said.startswith("not there, so what needs its weights is left out: run.model is nobody/nothing-0B")


def test_a_prompt_and_a_response_that_do_not_fit_together() -> None:
    (said,) = mended(planned("generation.max_model_len=24"))
    assert "leaves room for 24; lower rollout.max_tokens to " in said


def test_a_cache_too_small_for_one_sequence() -> None:
    lines = planned(
        "generation.engine=vllm", "generation.vllm.kv_cache_bytes=1048576", "generation.max_model_len=40000"
    )
    assert any(
        "generation.vllm.kv_cache_bytes is 1048576, too little for one sequence" in text for text in mended(lines)
    )


def test_memory_that_this_machine_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 100 << 20})())
    (said,) = mended(planned("streams.max_bytes=536870912"))
    assert "do not fit into the 100.00 MiB of cpu" in said
    assert said.endswith("change streams.max_bytes")


def test_what_vllm_reserves_of_a_gpu_is_not_there_for_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.dry_run.plan.device_bytes", lambda device: 1 << 30)
    flags = ["learner.device=cuda", "generation.engine=vllm", "generation.max_model_len=64", "rollout.max_tokens=16"]
    assert mended(planned(*flags, "generation.vllm.gpu_memory_utilization=0.5")) == []
    (said,) = mended(planned(*flags, "generation.vllm.gpu_memory_utilization=0.999"))
    assert "do not fit into the 1.00 GiB of cuda" in said


def test_a_device_that_is_not_here_is_a_note() -> None:
    lines = planned("learner.device=meta-gpu:7")
    assert mended(lines) == []
    assert Line("note", "memory", "this machine has no meta-gpu:7, so its memory was not compared") in lines


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss", "qwen3_dense"])
def test_parameters_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, kind)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = read(folder)
    assert found.parameters == sum(tensor.size for tensor in load_file(folder / "model.safetensors").values())
    assert found.parameters == pytest.approx(model.num_parameters(), rel=1e-3)


@pytest.mark.parametrize("targets", ["attention", "experts", "all"])
def test_adapters_are_counted_by_the_weights_that_they_adapt(targets: Any, tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen3_moe")
    recipe = load(Recipe, None, {}, [f"run.model={folder}", "learner.lora.rank=4", f"learner.lora.targets={targets}"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    add_lora(model, LoraSettings(rank=4, targets=targets), seed=0)
    exact = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert memory.lora_parameters(recipe, read(folder)) == pytest.approx(exact, rel=0.35)


def test_weights_that_are_not_here_are_counted_by_their_index(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    parameters = read(folder).parameters
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 4 * parameters}, "weight_map": {"lm_head.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read(folder).parameters == parameters
