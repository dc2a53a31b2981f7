"""One cause is one line that begins with MEND, whichever checks find it."""

from pathlib import Path

import pytest

from services.cli.dry_run.plan import plan
from services.cli.recipe import Recipe
from shared.recipes import load
from shared.settings import SERVICES
from tests.support.data import save_chat_model, sums, write_jsonl

PORTS = [f"{service}.{key}=0" for service in SERVICES for key in ("port", "metrics_port")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_chat_model(folder / "model", positions=200)
    write_jsonl(folder / "a.jsonl", sums(40))
    (folder / "broken.jinja").write_text("{{ messages")
    file = folder / "recipe.toml"
    file.write_text(
        '[run]\nmodel = "./model"\nsteps = 1\ngroups_per_step = 2\n[rollout]\nn = 2\nmax_tokens = 64\n'
        '[generation]\nengine = "torch"\n[learner]\nalgorithm = "gmpo"\n'
        '[[data.train]]\nsource = "a.jsonl"\nverifier = "math"\n'
        'columns = { prompt = "question", reference = "answer" }\n'
    )
    return file


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("data.train.0.verifier=maht", "data.train.0: verifier is 'maht'; known:"),
        ("data.train.0.columns.prompt=nope", "data.train.0: 40 of 40 rows cannot be used"),
        ("data.train.0.prompt={{ qestion }}", "data.train.0: 40 of 40 rows cannot be used"),
        ("data.train.0.chat_template=broken.jinja", "data.train.0: the chat template "),
        ("rollout.max_tokens=300", "rollout.max_tokens is 300, and the model's max_position_embeddings leaves room"),
        ("generation.max_model_len=60", "rollout.max_tokens is 64, and generation.max_model_len leaves room for 60"),
        ("data.train.0.source=none.jsonl", "data.train.0: source "),
    ],
)
def test_a_cause_is_said_once(recipe: Path, flag: str, said: str) -> None:
    if "broken.jinja" in flag:
        flag = f"data.train.0.chat_template={recipe.parent}/broken.jinja"
    lines = plan(load(Recipe, recipe, {}, [*PORTS, flag]))
    (mend,) = [line.text for line in lines if line.kind == "MEND" and "do not fit" not in line.text]
    assert mend.startswith(said)


def test_what_two_sources_have_is_said_of_both(recipe: Path) -> None:
    file = recipe.with_name("two.toml")
    table = recipe.read_text().partition("[[data.train]]")[2]
    file.write_text(f"{recipe.read_text()}[[data.train]]{table}")
    lines = plan(load(Recipe, file, {}, [*PORTS, "data.train.0.columns.prompt=nope", "data.train.1.columns.prompt=no"]))
    mend = [line.text for line in lines if line.kind == "MEND" and "do not fit" not in line.text]
    assert [text.partition(":")[0] for text in mend] == ["data.train.0", "data.train.1"]
