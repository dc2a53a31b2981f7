"""Models that are no more than a config, and the settings that every recipe of these tests has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from shared.settings import SERVICES

_CONFIG = {"model_type": "qwen3_moe", "max_position_embeddings": 64}
FREE = [f"{service}.{key}=0" for service in SERVICES for key in ("port", "metrics_port")]


def model(folder: Path, **config: Any) -> Path:
    """A folder whose config is a small one with these changes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**_CONFIG, **config}))
    save_file({"weight": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")
    return folder
