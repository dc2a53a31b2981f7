"""Models of recipes, made for a moment by the scripts that ship them."""

import subprocess
import sys
from pathlib import Path

from shared.files import sha256

ROOT = Path(__file__).parents[2]


def make(recipe: str, out: Path, *options: str) -> dict[str, str]:
    """Runs `deploy.recipes.RECIPE.make_model` for three steps; the SHA-256 of every file that it wrote."""
    command = [sys.executable, "-m", f"deploy.recipes.{recipe}.make_model", "--steps", "3", "--out", str(out)]
    subprocess.run([*command, *options], check=True, capture_output=True, cwd=ROOT)
    return {path.name: sha256(path) for path in out.iterdir()}
