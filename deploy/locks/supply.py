"""What the images hold of others: bills of materials, licences, and known vulnerabilities.

    make sbom        build/sbom/IMAGE.json, CycloneDX 1.6
    make licences    a line for each package
    make audit       asks osv.dev; exit codes: 0 nothing is known, 1 something is, 3 nobody could be asked

Packages and hashes are those of deploy/docker/requirements. What the base images hold is not in them: Debian's packages
below all, and the official vLLM image below `generation` and `learner-gpu`. Scan the built image for those.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "deploy" / "docker" / "requirements"
OSV = "https://api.osv.dev"
NOBODY_ASKED = 3
IMAGES = {
    "reward": ("core", "reward"),
    "curriculum": ("core", "data"),
    "environments": ("core", "data", "gateway"),
    "learner": ("core", "torch"),
    "generation-cpu": ("core", "torch", "vllm"),
    "generation": ("gpu",),
    "learner-gpu": ("gpu",),
}
_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, order=True)
class Package:
    """A package of PyPI, as an image installs it."""

    name: str
    version: str
    sha256: str

    @property
    def public_version(self) -> str:
        """Without what names a build, as `+cpu`: advisories know none."""
        return self.version.partition("+")[0]

    @property
    def licence(self) -> str:
        """What its metadata says, where this environment has it; else `unknown`."""
        try:
            said = metadata(self.name)
        except PackageNotFoundError:
            return "unknown"
        named = [each.rsplit(" :: ", 1)[1] for each in said.get_all("Classifier", []) if each.startswith("License :: ")]
        expression, written = ("".join(said.get_all(key, [])[:1]) for key in ("License-Expression", "License"))
        return expression or "; ".join(named) or written.strip().partition("\n")[0] or "unknown"


def packages(*locks: str) -> list[Package]:
    """Those of some lock files, by name."""
    found = set()
    for lock in locks:
        for line in (REQUIREMENTS / f"{lock}.txt").read_text().splitlines():
            pin, digest = line.split(" --hash=sha256:")
            name, version = pin.split("==")
            found.add(Package(name, version, digest))
    return sorted(found)


def everything() -> list[Package]:
    return packages(*dict.fromkeys(lock for locks in IMAGES.values() for lock in locks))


def bill(image: str) -> dict[str, Any]:
    """The bill of materials of an image (CycloneDX 1.6), the same for the same locks."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": f"routershift/{image}"}},
        "components": [
            {
                "type": "library",
                "name": each.name,
                "version": each.version,
                "purl": f"pkg:pypi/{each.name}@{each.version.replace('+', '%2B')}",
                "hashes": [{"alg": "SHA-256", "content": each.sha256}],
                "licenses": [{"license": {"name": each.licence}}],
            }
            for each in packages(*IMAGES[image])
        ],
    }


def known(found: list[Package], source: str) -> Iterator[tuple[Package, list[str]]]:
    """Packages with ids of their vulnerabilities. Raises: OSError: the source does not answer."""
    queries = [{"package": {"ecosystem": "PyPI", "name": each.name}, "version": each.public_version} for each in found]
    request = urllib.request.Request(  # noqa: S310  # an address that whoever audits gives
        f"{source}/v1/querybatch", json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
        results = json.load(answer)["results"]
    for each, result in zip(found, results, strict=True):
        if ids := [one["id"] for one in result.get("vulns", [])]:
            yield each, ids


def audit(source: str) -> int:
    """Prints what is known; gives the exit code."""
    found = everything()
    try:
        faults = list(known(found, source))
    except OSError as error:
        sys.stderr.write(f"{source} does not answer ({error}): none of {len(found)} packages was audited\n")
        return NOBODY_ASKED
    for each, ids in faults:
        sys.stdout.write(f"{each.name} {each.version}: {', '.join(ids)}\n")
    sys.stdout.write(f"{len(found)} packages, {len(faults)} with known vulnerabilities by {source}\n")
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy.locks.supply")
    parser.add_argument("what", choices=("sbom", "licences", "audit"))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sbom", help="where bills are written")
    parser.add_argument("--source", default=OSV, help="an address that answers as osv.dev does")
    chosen = parser.parse_args()
    if chosen.what == "audit":
        return audit(chosen.source)
    if chosen.what == "licences":
        for each in everything():
            sys.stdout.write(f"{each.name} {each.version}: {each.licence}\n")
        return 0
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for image in IMAGES:
        (chosen.folder / f"{image}.json").write_text(json.dumps(bill(image), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
