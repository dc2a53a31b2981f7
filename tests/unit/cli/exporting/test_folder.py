"""What is exported of a run's folder, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from services.cli.evaluations import best
from services.cli.exporting.folder import BEST, CARD, export
from services.cli.main import main
from shared.errors import RouterShiftError
from shared.tracking import records
from shared.tracking import settings as recorded
from shared.weights import published
from tests.support.kept import exportable
from tests.support.models import EOS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """See `exportable`."""
    return exportable(tmp_path)


def test_the_best_version_is_a_whole_folder_with_a_card(run: Path, tmp_path: Path) -> None:
    made = export(run, BEST, tmp_path / "out/mine")
    assert (made.version, made.folder) == (3, tmp_path / "out/mine")
    files = {path.name for path in made.folder.iterdir()}
    assert files == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", CARD,
    }  # fmt: skip
    assert [path.name for path in made.folder.parent.iterdir()] == ["mine"]
    source = run / "weights" / published.folder_name(3)
    assert (made.folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    card = (made.folder / CARD).read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "base_model:" not in card  # a folder is no name on the hub
    assert "| **3** | 0.5000 | 0.6000 | 0.5500 | 8 | 32 |" in card
    assert "mean reward of the last step: 0.25" in card
    assert "- task: `sums|mine`" in card
    assert "run.steps = 4" in card
    assert published.read_manifest(source).files[0].sha256 in card


@pytest.mark.parametrize(
    "model",
    ["Qwen/Qwen3-30B-A3B", "/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-30B-A3B/snapshots/0123abcd"],
)
def test_a_card_names_a_model_of_the_hub(run: Path, tmp_path: Path, model: str) -> None:
    file = run / recorded.FOLDER / "curriculum.json"
    tables = json.loads(file.read_text())
    tables["run"]["model"] = model
    file.write_text(json.dumps(tables))
    made = export(run, "4", tmp_path / "out")
    assert "base_model: Qwen/Qwen3-30B-A3B\n" in (made.folder / CARD).read_text()


def test_a_folder_without_generation_config_gets_one(run: Path, tmp_path: Path) -> None:
    (run / "weights" / published.folder_name(4) / "generation_config.json").unlink()
    made = export(run, "4", tmp_path / "out")
    assert json.loads((made.folder / "generation_config.json").read_text())["eos_token_id"] == EOS


def test_the_chat_template_that_the_run_was_trained_with_goes_along(run: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages }}")
    file = run / recorded.FOLDER / "curriculum.json"
    tables = json.loads(file.read_text())
    tables["data"] = {"train": [{"source": "a.jsonl", "chat_template": str(template)}], "eval": []}
    file.write_text(json.dumps(tables))
    made = export(run, "4", tmp_path / "out")
    assert (made.folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert str(tmp_path) not in (made.folder / CARD).read_text()  # others may read it
    assert "- train: `a.jsonl`" in (made.folder / CARD).read_text()
    template.unlink()
    with pytest.raises(RouterShiftError, match=r"chat template .*mine\.jinja, which cannot be read now"):
        export(run, "4", tmp_path / "other")
    tables["data"]["train"].append({"source": "b.jsonl", "chat_template": True})
    file.write_text(json.dumps(tables))
    assert not (export(run, "4", tmp_path / "other").folder / "chat_template.jinja").exists()


def test_a_run_without_records_or_settings_is_exported_all_the_same(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / recorded.FOLDER)
    for name in (records.LEARNER, records.EVALUATIONS):
        (run / name).unlink()
    assert "Version 4 of run `small`" in (export(run, "4", tmp_path / "out").folder / CARD).read_text()
    with pytest.raises(RouterShiftError, match=r"no evaluation yet.* kept: 3, 4"):
        export(run, BEST, tmp_path / "other")


@pytest.mark.parametrize(
    ("version", "adapter", "said"),
    [
        ("7", False, "version 7 of run small is not kept; give --version, kept: 3, 4"),
        ("newest", False, "--version is 'newest'; expected 'best' or a number, kept: 3, 4"),
        ("-1", False, "--version is '-1'"),
        ("0", False, "version 0 is the model that run small began with"),
        ("3", True, "was trained with learner.lora.rank 0; leave --adapter out"),
    ],
)
def test_versions_that_there_are_not(run: Path, tmp_path: Path, version: str, adapter: bool, said: str) -> None:
    with pytest.raises(RouterShiftError) as refused:
        export(run, version, tmp_path / "out", adapter)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder, said in (
        (taken, "not empty"),
        (taken / "notes", "no folder"),
        (taken / "notes/below", "is a file"),
        (tmp_path / "link", "no folder"),
    ):
        with pytest.raises(RouterShiftError, match=said):
            export(run, BEST, folder)
    assert (taken / "notes").read_text() == "mine"
    (taken / "notes").unlink()
    assert (export(run, BEST, taken).folder / CARD).is_file()


def test_files_that_are_not_those_that_were_published(run: Path, tmp_path: Path) -> None:
    weights = run / "weights" / published.folder_name(3) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RouterShiftError, match=r"model\.safetensors has SHA-256"):
        export(run, BEST, tmp_path / "out/mine")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_manifest_that_points_elsewhere(run: Path, tmp_path: Path) -> None:
    manifest = run / "weights" / published.folder_name(3) / published.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "folder": "../../elsewhere"}))
    with pytest.raises(RouterShiftError, match="is that of a folder"):
        export(run, BEST, tmp_path / "out")


def test_the_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert best(run, records.read(run / records.EVALUATIONS))["version"] == 3
    assert main(["export", "small", "out dir", "--push", "me/mine"]) == 0
    said = capsys.readouterr().out
    assert "version 3, " in said
    assert f"to upload it: hf upload me/mine '{tmp_path / 'out dir'}'" in said
    assert main(["export", "small", "out dir"]) == 2
    assert main(["export", "nothing", "other"]) == 2
    (tmp_path / "runs/empty").mkdir()
    assert main(["export", "empty", "other", "--version", "1"]) == 2
    assert "run empty has published no weights" in capsys.readouterr().err
