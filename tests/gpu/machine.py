"""What the GPU script ran on, and everything that it found, as one JSON object."""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "vllm", "grpcio", "protobuf", "redis", "pydantic", "peft", "triton")


def machine() -> dict[str, Any]:
    """The device and the versions of packages.

    Raises:
        SystemExit: there is no GPU that torch can use.
    """
    if not torch.cuda.is_available():
        raise SystemExit("tests/gpu/run.sh needs a GPU that torch can use; torch.cuda.is_available() is False")
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def results(folder: Path) -> dict[str, Any]:
    """What the parts printed: of each its exit code, its seconds, and its JSON where it ended with one."""
    parts = {}
    for line in (folder / "parts.txt").read_text(encoding="utf-8").splitlines():
        name, code, seconds = line.split()
        last = (folder / f"{name}.out").read_text(encoding="utf-8").strip().rpartition("\n")[2]
        parts[name] = {"code": int(code), "seconds": int(seconds), "result": _json(last)}
    return {"machine": json.loads((folder / "machine.json").read_text(encoding="utf-8")), "parts": parts}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


if __name__ == "__main__":
    print(json.dumps(machine() if len(sys.argv) == 1 else results(Path(sys.argv[1]))))
