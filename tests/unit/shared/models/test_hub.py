"""Models by name: what is a name, what the cache must hold, what is downloaded, and what each failure says."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.generation.engines.torch.model import load_folder
from services.learner.model.policy import load as load_policy
from services.reward.settings import Settings as RewardTables
from shared.errors import InvalidInputError
from shared.models.hub import parse_model
from shared.recipes import load
from tests.support.hub import COMMIT, LATER, Hub, cache_model, hub
from tests.support.models import save_model
from tests.support.settings import learner_settings

NAME = "some-org/Some-MoE-1B"
FETCH = """
import sys
from shared.errors import RouterShiftError
from shared.settings import RunSettings
name, revision, weights = sys.argv[1:]
try:
    run = RunSettings(model=name, model_revision=revision)
    print(run.require_model() if weights else run.model_folder(weights=False))
except RouterShiftError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def fetch(
    home: Path, name: str = NAME, revision: str = "", weights: bool = True, **environment: str
) -> tuple[str, str]:
    """What a process of its own, which reads the variables of the Hub when it starts, prints and says on stderr."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name, revision, "1" if weights else ""],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=home,
        env=clean | {"HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    return done.stdout.strip(), done.stderr.strip()


def offline(home: Path, name: str = NAME, revision: str = "", weights: bool = True) -> tuple[str, str]:
    return fetch(home, name, revision, weights, HF_HUB_OFFLINE="1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dense model with tied weights in several shards."""
    whole = save_model(tmp_path / "whole", "qwen3_dense")
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    (whole / "model.safetensors").unlink()
    model.save_pretrained(whole, max_shard_size="300KB")
    assert len(list(whole.glob("model-*.safetensors"))) > 1
    return whole


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B"),
        ("hf://Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B"),
        ("hf://here/model", "here/model"),
        ("here/model", Path("here/model")),
        ("here/not-yet", Path("here/not-yet")),
        ("./Qwen/Qwen3", Path("Qwen/Qwen3")),
        ("../Qwen/Qwen3", Path("../Qwen/Qwen3")),
        ("/models/qwen", Path("/models/qwen")),
        ("/models", Path("/models")),
        ("a/b/c", Path("a/b/c")),
        ("gpt2", Path("gpt2")),
        ("~/model", Path("~/model")),
        ("Qwen/", Path("Qwen")),
    ],
)
@pytest.mark.parametrize("by", ["recipe", "flag"])
def test_a_name_is_told_from_a_folder_beside_the_recipe_or_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, meant: Path | str, by: str
) -> None:
    recipes, caller = tmp_path / "recipes", tmp_path / "caller"
    for place in (recipes, caller):
        place.mkdir()
    (tmp_path / by).symlink_to({"recipe": recipes, "flag": caller}[by])
    (tmp_path / by / "here").mkdir()
    monkeypatch.chdir(caller)
    recipe = recipes / "recipe.toml"
    recipe.write_text(f'[run]\nmodel = "{text if by == "recipe" else "x"}"\n')
    model = load(RewardTables, recipe, {}, [] if by == "recipe" else [f"run.model={text}"]).run.model
    if isinstance(meant, Path):
        assert model == (recipes / meant if by == "recipe" else meant)
    else:
        assert model == meant


def test_a_name_that_is_none_and_a_revision_of_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'org' is not OWNER/NAME"):
        parse_model("hf://org", tmp_path)
    for flags in (["run.model=hf://org"], ["run.model=./org/name", "run.model_revision=v1"]):
        with pytest.raises(InvalidInputError, match=r"OWNER/NAME") as refused:
            load(RewardTables, None, {}, flags)
        assert "\n" not in str(refused.value)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[run]\nmodel = "hf://a/b/c"\n')
    with pytest.raises(InvalidInputError, match=r"recipe\.toml: run\.model: 'a/b/c' is not OWNER/NAME"):
        load(RewardTables, recipe, {})


def test_both_engines_of_torch_load_a_snapshot_of_links(tmp_path: Path, folder: Path) -> None:
    snapshot = cache_model(tmp_path / "hub", NAME, folder)
    found, said = offline(tmp_path)
    assert (found, said) == (str(snapshot), "")
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        assert torch.equal(load_policy(snapshot, learner_settings())[0](ids).logits, expected)
        assert torch.equal(load_folder(snapshot, "cpu").model(ids).logits, expected)


def test_a_revision_is_a_branch_a_tag_or_a_commit(tmp_path: Path, folder: Path) -> None:
    main = cache_model(tmp_path / "hub", NAME, folder)
    later = cache_model(tmp_path / "hub", NAME, folder, LATER, "v2")
    for revision, snapshot in (("", main), ("main", main), (COMMIT, main), ("v2", later), (LATER, later)):
        assert offline(tmp_path, revision=revision) == (str(snapshot), "")
    found, said = offline(tmp_path, revision="v3")
    assert not found
    assert said.startswith(f"NotFoundError: run.model is {NAME}; ")
    assert f"hf download {NAME} --revision v3 --local-dir models/Some-MoE-1B" in said


def test_what_the_cache_lacks_is_said_offline(tmp_path: Path, folder: Path) -> None:
    found, said = offline(tmp_path)
    assert not found
    assert f"it is not in the cache {tmp_path}/hub, while HF_HUB_OFFLINE is set" in said
    assert f"hf download {NAME} --local-dir models/Some-MoE-1B" in said
    snapshot = cache_model(tmp_path / "hub", NAME, folder)
    shard = sorted(snapshot.glob("model-*"))[0]
    shard.unlink()
    found, said = offline(tmp_path)
    assert not found
    assert f"its snapshot {snapshot} has no {shard.name}" in said
    assert "\n" not in said
    assert offline(tmp_path, weights=False) == (str(snapshot), "")


def test_a_cut_link_is_a_missing_file(tmp_path: Path, folder: Path) -> None:
    snapshot = cache_model(tmp_path / "hub", NAME, folder)
    shard = sorted(snapshot.glob("model-*"))[0]
    shard.resolve().unlink()
    assert f"has no {shard.name}" in offline(tmp_path)[1]


def contents(folder: Path) -> dict[str, bytes]:
    """A repository with a model folder, and with what its like have beside it."""
    more = ("README.md", "modeling_own.py", "pytorch_model.bin", "consolidated.safetensors", "original/config.json",
            "original/model.safetensors", "model.gguf")  # fmt: skip
    return {file.name: file.read_bytes() for file in folder.iterdir()} | dict.fromkeys(more, b"x" * 10_000)


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    with hub(contents(folder)) as state:
        yield state


def test_only_what_is_needed_is_downloaded_and_only_once(tmp_path: Path, folder: Path, server: Hub) -> None:
    found, said = fetch(tmp_path, HF_ENDPOINT=server.endpoint)
    assert found == str(tmp_path / f"hub/models--some-org--Some-MoE-1B/snapshots/{COMMIT}"), said
    assert sorted(server.fetched) == sorted(file.name for file in folder.iterdir())
    assert "100%" in said  # of the progress
    server.fetched.clear()
    assert fetch(tmp_path, HF_ENDPOINT=server.endpoint)[0] == found
    assert server.fetched == []
    assert offline(tmp_path) == (found, "")


def test_descriptions_alone_come_without_weights(tmp_path: Path, server: Hub) -> None:
    found, _ = fetch(tmp_path, weights=False, HF_ENDPOINT=server.endpoint)
    assert (Path(found) / "tokenizer.json").is_file()
    assert not [name for name in server.fetched if name.endswith(".safetensors")]
    # Offline, the weights are what is missing.
    assert "only a part of it" in offline(tmp_path)[1]


def test_a_branch_that_moves_is_followed_from_run_to_run(tmp_path: Path, server: Hub) -> None:
    first, _ = fetch(tmp_path, HF_ENDPOINT=server.endpoint)
    server.commit = LATER
    second, _ = fetch(tmp_path, HF_ENDPOINT=server.endpoint)
    assert [Path(found).name for found in (first, second)] == [COMMIT, LATER]
    assert fetch(tmp_path, revision=COMMIT, HF_ENDPOINT=server.endpoint)[0] == first


def test_without_the_server_the_cache_counts(tmp_path: Path, folder: Path) -> None:
    nobody = "http://127.0.0.1:9"
    found, said = fetch(tmp_path, HF_ENDPOINT=nobody)
    assert not found
    assert "while the Hub cannot be reached" in said.splitlines()[-1]
    snapshot = cache_model(tmp_path / "hub", NAME, folder)
    assert fetch(tmp_path, HF_ENDPOINT=nobody)[0] == str(snapshot)


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (401, "RepoNotFound", f"answers 401. If it is a folder, write ./{NAME}; if it is private, set HF_TOKEN"),
        (404, "RepoNotFound", f"answers 404. If it is a folder, write ./{NAME}"),
        (403, "GatedRepo", f"accept its terms at https://huggingface.co/{NAME}, and set HF_TOKEN"),
        (404, "RevisionNotFound", f"is 'v9'; the Hugging Face Hub has no such branch, tag or commit of {NAME}"),
        (500, "", "the Hub cannot be reached"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_said_in_one_line(
    tmp_path: Path, server: Hub, status: int, code: str, text: str
) -> None:
    server.refuses = status, code
    found, said = fetch(tmp_path, revision="v9", HF_ENDPOINT=server.endpoint)
    assert not found
    assert text in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_repository_without_safetensors_is_refused(tmp_path: Path, folder: Path) -> None:
    files = {name: content for name, content in contents(folder).items() if "safetensors" not in name}
    with hub(files) as state:
        found, said = fetch(tmp_path, HF_ENDPOINT=state.endpoint)
    assert not found
    assert "has no model.safetensors, and weights are read from safetensors alone" in said.splitlines()[-1]
    assert state.fetched
    assert "pytorch_model.bin" not in state.fetched


def test_the_config_of_a_repository_is_json(tmp_path: Path, folder: Path) -> None:
    with hub(contents(folder) | {"config.json": json.dumps([]).encode()}) as state:
        said = fetch(tmp_path, HF_ENDPOINT=state.endpoint)[1]
    assert "config.json holds list; expected a JSON object" in said.splitlines()[-1]
