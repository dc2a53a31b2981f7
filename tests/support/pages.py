"""Pages of docs/ as a reader follows them: their files are written, their package installed, their commands run.

A fenced block with a title is a file: ```python title="brief.py". Where one of them is pyproject.toml, the folder is
installed by pip. A block of the language `console` has commands that begin with `$ `, and what each of them prints;
`...` stands for whatever differs from run to run.
"""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, title and text of each fenced block; the title of one without is empty."""
    return [(match[1], match[2] or "", match[3]) for match in _BLOCK.finditer(page.read_text())]


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Each command of the page, and what it is to print."""
    for language, _, text in blocks(page):
        if language == "console":
            for part in re.split(r"(?m)^\$ ", text)[1:]:
                command, _, output = re.sub(r"\\\n", "", part).partition("\n")
                yield command, output


def install(page: Path, folder: Path) -> dict[str, str]:
    """Writes the files of a page, and installs the package that they make beside them.

    Returns:
        The environment of a reader who has done so, from the root of the repository as well: `deploy` is there.
    """
    for _, title, text in blocks(page):
        if title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(text)
    (folder / "deploy").symlink_to(ROOT / "deploy")  # what pages read from the root of the repository
    site = folder / "site-packages"
    if (folder / "pyproject.toml").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(
            [*pip, "--target", site, folder], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(site), "PATH": path}


def follow(page: Path, folder: Path, timeout: float = 120) -> dict[str, str]:
    """Does what the page says, in an empty folder; what is printed must be what the page shows.

    Returns:
        The environment of the reader.
    """
    environment = install(page, folder)
    shown = list(commands(page))
    assert shown, f"{page} has no command"
    for command, expected in shown:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(expected, done.stdout, flags)
        assert same, f"{command}\n--- expected\n{expected}--- printed\n{done.stdout}"
    return environment


def all_pages() -> list[Path]:
    """Every Markdown file of the repository, but for what tools keep in hidden folders."""
    found = [page.relative_to(ROOT) for page in sorted(ROOT.rglob("*.md"))]
    return [ROOT / page for page in found if not any(part.startswith(".") or part == "build" for part in page.parts)]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
