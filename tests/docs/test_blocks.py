"""Code blocks and commands of all pages are ones that can be run; `test_pages` runs those that need nothing."""

import argparse
import ast
import json
import re
import subprocess
import tomllib

import pytest
import yaml

from services.cli.main import build_parser
from services.cli.recipe import Recipe
from tests.support.keys import exists, leaves
from tests.support.pages import ROOT, all_pages, prose
from tests.support.shell import called, shell, texts_of

PAGES = [page for page in all_pages() if page.name != "CHANGELOG.md"]
_INLINE = re.compile(r"`(?:\.venv/bin/)?routershift ([^`]+)`")
_MAKE = re.compile(r"`make ([a-z][a-z-]*)")
_PATH = re.compile(r"(?<![\w/.-])((?:deploy|tests|docs|services|proto)/[\w./-]+)")


def all_shell() -> str:
    return "\n".join(shell(page) for page in PAGES)


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return build_parser()


@pytest.fixture(scope="module")
def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def of_packages() -> set[str]:
    """Commands that packages of the pages add."""
    tables = [tomllib.loads(text).get("project", {}) for page in PAGES for text in texts_of(page, "toml")]
    return {name for table in tables for name in table.get("entry-points", {}).get("routershift.commands", {})}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """What a command and the commands in it can be told."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for inner in action.choices.values() for option in options(inner)}
    return found


def test_shell_blocks_are_shell() -> None:
    done = subprocess.run(["bash", "-n"], input=all_shell(), text=True, capture_output=True, check=False, timeout=60)
    assert done.stderr == ""


def test_commands_of_blocks_take_their_arguments(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    refused, parsed = [], 0
    for words in called(all_shell(), "routershift"):
        if words and words[0] not in of_packages():
            try:
                parser.parse_args(words)
                parsed += 1
            except SystemExit as ended:
                if ended.code != 0:
                    refused.append(f"{' '.join(words)}: {capsys.readouterr().err.splitlines()[-1]}")
    assert refused == []
    assert parsed > 60


def test_commands_in_sentences_exist_with_their_options(commands: dict[str, argparse.ArgumentParser]) -> None:
    unknown, seen = [], 0
    for page in PAGES:
        for line in _INLINE.findall(prose(page)):
            name, *words = line.split()
            if name.startswith("-") or name in of_packages() or not name.islower():
                continue
            seen += 1
            known = options(commands[name]) if name in commands and name != "bench" else None
            wrong = [word for word in words if word.startswith("--") and known is not None and word not in known]
            if name not in commands or wrong:
                unknown.append(f"{page.relative_to(ROOT)}: routershift {line}")
    assert unknown == []
    assert seen > 40


def test_goals_of_make_exist() -> None:
    goals = set(re.findall(r"(?m)^([a-z-]+):.*## ", (ROOT / "Makefile").read_text()))
    named = {goal for page in PAGES for goal in _MAKE.findall(prose(page))}
    named |= {word for words in called(all_shell(), "make") for word in words if "=" not in word}
    assert len(named) > 8
    assert named - goals == set()


def test_paths_of_shell_blocks_are_in_the_repository() -> None:
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    named = set(_PATH.findall(all_shell())) - made
    assert len(named) > 15
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_python_blocks_are_python() -> None:
    texts = [text for page in PAGES for text in texts_of(page, "python")]
    assert len(texts) > 20
    for text in texts:
        compile(text, text.partition("\n")[0], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_data_blocks_can_be_read() -> None:
    for page in PAGES:
        for text in texts_of(page, "yaml"):
            yaml.safe_load(text)
        for text in texts_of(page, "json"):
            try:
                json.loads(text)
            except ValueError:  # JSON Lines
                for line in text.splitlines():
                    json.loads(line)


def test_keys_of_recipes_exist() -> None:
    tables = [tomllib.loads(text) for page in PAGES for text in texts_of(page, "toml")]
    keys = [key for table in tables for key in leaves(table) if key[0] in Recipe.model_fields]
    keys = [key for key in keys if "verifier" not in key[:-1]]  # the settings of a kind, as one table of a row
    assert len(keys) > 40
    assert [".".join(key) for key in keys if not exists(key)] == []
