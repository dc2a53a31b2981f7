"""A run whose model is a name on the Hugging Face Hub, in the cache."""

import json
from pathlib import Path

from tests.support.command import RECIPE, Start, settings
from tests.support.hub import cache_model

NAME = "some-org/countdown"


def test_a_model_by_name_trains_from_the_cache(start: Start, tmp_path: Path) -> None:
    snapshot = cache_model(tmp_path / "hub", NAME, RECIPE.parent / "countdown" / "model")
    flags = settings(run__model=NAME, run__model_revision="main", run__steps=2)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    code, out, err = start("run", str(RECIPE), *flags, environment=offline).finish(timeout=240)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == 2
    # What is published is whole without the cache.
    version = sorted((tmp_path / "runs/test/weights").glob("*/config.json"))[-1].parent
    assert not [file for file in version.iterdir() if file.is_symlink()]
    assert (version / "tokenizer.json").read_bytes() == (snapshot / "tokenizer.json").read_bytes()
