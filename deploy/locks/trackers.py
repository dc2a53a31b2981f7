"""Writes trackers.txt: what the experiment trackers need beside base.txt, vllm.txt and dev.txt: `make tracker-locks`.

They are not in those files, as some need older versions of what is pinned there (mlflow-skinny: cachetools; trackio:
pillow). Their tests install them into a folder of their own. Asks the package index; installs nothing.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")  # extras


def main() -> None:
    extras = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [package for tracker in TRACKERS for package in extras[tracker]]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", *wanted]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    found = [item["metadata"] for item in json.loads(answer.stdout)["install"]]
    lines = sorted(f"{package['name'].lower().replace('_', '-')}=={package['version']}" for package in found)
    (HERE / "trackers.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
