"""The families of models that the READMEs name are those of the table, and each stands where its row puts it."""

import re
from pathlib import Path

import pytest

from routershift.routing.families import families, why_refused
from tests.support.pages import ROOT

NAMES = {
    "deepseek_v3": "DeepSeek-V3",
    "glm4_moe": "GLM-4-MoE",
    "glm_moe_dsa": "GLM-5",
    "gpt_oss": "GPT-OSS",
    "llama4_text": "Llama-4",
    "minimax_m2": "MiniMax-M2",
    "mixtral": "Mixtral",
    "olmoe": "OLMoE",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3_moe": "Qwen3-MoE",
}
REFUSED = {"nemotron_h": "Nemotron-H", "qwen3_5_moe": "Qwen3.5-MoE", "qwen3_next": "Qwen3-Next"}


def names(text: str) -> set[str]:
    """Those of our families and of the refused ones that a text names."""
    return {name for name in (*NAMES.values(), *REFUSED.values()) if re.search(rf"\b{re.escape(name)}\b", text)}


def between(page: Path, begin: str, end: str) -> str:
    return page.read_text().partition(begin)[2].partition(end)[0]


def test_every_family_has_a_name() -> None:
    assert NAMES.keys() == families().keys()
    assert all(why_refused(kind) for kind in REFUSED)


def test_the_front_page_names_what_a_run_can_train_and_what_it_refuses() -> None:
    page = ROOT / "README.md"
    assert names(between(page, "Routers are corrected in ", "Refused")) == {*NAMES.values()}
    assert names(between(page, "Refused, before anything starts, are ", "What each engine")) == {*REFUSED.values()}


def test_the_learner_names_all() -> None:
    models = between(ROOT / "services/learner/README.md", "## Models", "##")
    assert names(models) == {*NAMES.values(), *REFUSED.values()}


@pytest.mark.parametrize("kind", NAMES)
def test_the_engines_say_what_they_do_with_each(kind: str) -> None:
    table = between(ROOT / "services/generation/README.md", "## Families", "\n\n`routershift")
    (row,) = (line for line in table.splitlines() if line.startswith("|") and NAMES[kind] in names(line))
    _, _, vllm, torch, _ = row.split("|")
    family = families()[kind]
    assert ("refused on CPU" in vllm) == (not family.vllm_on_cpu)
    assert ("refused" in torch) == (not family.torch_engine)
