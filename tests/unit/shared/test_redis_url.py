"""Mistakes in the URL of a Redis: one line that says what is wrong, without a secret, and exit code 2."""

from pathlib import Path

import pytest

from services.cli.main import main
from shared import redis_url

WRONG = {
    "redis://:secretpart#pw@h:1/0": "%23",
    "redis://:secret/part@h:1/0": "%2F",
    "redis://:secret?part@h:1/0": "%3F",
    "redis://:[secret@h:1/0": "%5B",
    "redis://:secret part@h:1/0": "blank",
    "redis://h:1/0#secret": "%23",
    "redis://h:secret/0": "port",
    "redis://h:99999/0": "port",
    "redis://h:0/0": "port",
    "redis://h:-1/0": "port",
    "redis://h:1/secret": "database",
    "redis://h:1/-1": "database",
    "redis://h:1/0/secret": "database",
    "redis://h:1?db=secret": "database",
    "redis+sentinel://secret@h:1": "NAME",
    "redis+sentinel://:secret@h:x,i/runs": "NAME",
    "redis+sentinel://:secret@h,/runs": "NAME",
    "redis+sentinel://h:1/runs/secret": "NAME",
    "redis+sentinel://h:1/runs?secret=1": "NAME",
    "sentinel://secret@h:1/mymaster": "Sentinel",
    "redis+cluster://:secret@h:1/3": "Cluster",
    "redis+cluster://h:secret": "Cluster",
    "redis+cluster://h?secret=1": "Cluster",
    "cluster://secret@h:1": "Cluster",
    "http://:secret@h": "redis://",
    "h:6379": "redis://",
    "secret": "redis://",
    "unix://secret/redis.sock": "three slashes",
    "unix://": "three slashes",
    "unix:///secret.sock?db=secret": "database",
    f"unix:///{'secret' * 20}": "107",
}
RIGHT = [
    "redis://127.0.0.1:6379/0",
    "rediss://user:p%23w@h",
    "redis://u:p@ss@h:1/3",
    "redis://[::1]:6379/0",
    "redis://h",
    "redis://h?db=2",
    "unix:///run/redis.sock?db=0",
    "redis+sentinel://h:26379,i,[::1]:7/runs",
    "rediss+sentinel://u:p%23w@h/runs/2",
    "redis+cluster://h,i:7,[::1]:8",
    "rediss+cluster://u:p%23w@h:1/0",
    "unix://user:pw@/run/redis.sock",
]


@pytest.mark.parametrize(("url", "said"), WRONG.items())
def test_what_is_wrong_is_said_without_the_url(url: str, said: str) -> None:
    problem = redis_url.problem(url)
    assert said in problem
    assert "secret" not in problem


@pytest.mark.parametrize("url", RIGHT)
def test_what_redis_py_takes_is_right(url: str) -> None:
    assert redis_url.problem(url) == ""


OPTIONS = ["redis://h:1/0?secret=1", "redis://h:1/0?socket_timeout=secret"]  # only a client knows what there is
LOOK = [["status", "x"], ["audit", "x"], ["dead", "x", "list"], ["doctor"]]
START = [["run", "RECIPE"], ["up", "--recipe", "RECIPE"], ["serve", "reward", "--recipe", "RECIPE"]]
CASES = [
    *((url, each) for url in WRONG for each in (*LOOK, *START)),
    *((url, each) for url in OPTIONS for each in LOOK),
]


@pytest.mark.parametrize(("url", "arguments"), CASES)
def test_every_command_says_it_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    arguments: list[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(f'[run]\nmodel = "{tmp_path}"\n')
    code = main([part.replace("RECIPE", "recipe.toml") for part in arguments])
    out, err = capsys.readouterr()
    said = [line for line in (out + err).splitlines() if "url" in line]
    assert code == 2
    assert len(said) == 1
    assert "secret" not in out + err
    assert "Traceback" not in err


def test_a_url_of_sentinel_names_all_of_them() -> None:
    found = redis_url.sentinels("rediss+sentinel://u:p%23w@h:1,i/runs/2")
    assert found == redis_url.Several((("h", 1), ("i", 26379)), "runs", 2, "u", "p#w", tls=True)
    assert redis_url.sentinels("redis://h/0") is None


def test_a_url_of_cluster_names_some_of_its_nodes() -> None:
    assert redis_url.sentinels("redis+cluster://h") is None
    found = redis_url.cluster("redis+cluster://u:p%23w@h:1,[::1]")
    assert found == redis_url.Several((("h", 1), ("::1", 6379)), "", 0, "u", "p#w", tls=False)
