"""`routershift rollouts`: which samples it shows, how, and what it says where there is nothing to show."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from routershift.trajectory import Role, Segment
from services.cli.main import main
from services.cli.rollouts.show import visible
from shared.tracking.sample import Tokens
from shared.tracking.samples import SampleWriter
from tests.support.cli import ROUTERSHIFT, environment
from tests.support.samples import dropped, sample

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")  # a foreground


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Steps 2 and 5 with two groups each: rewards 0, 0.1, ... in their order; one more was dropped."""
    writer, number = SampleWriter(tmp_path, 1 << 30), 0
    for step in (2, 5):
        for prompt in (step, step + 100):
            for i in range(2):
                name = f"{prompt:08d}/0/{i}"
                made = sample(
                    step, name, reward=number / 10, prompt=f"ask {prompt}", problem=f"row-{prompt}", tokens=tokens()
                )
                writer.add([made])
                number += 1
    writer.add([dropped(6, "00000300/0/0", reward=0.5)])  # the next step is being collected
    writer.add([dropped(5, "00000200/0/0", "stale", prompt="ask 200", message="no answer\x1b[2J")])
    return tmp_path


def tokens() -> Tokens:
    """Five, of which the fourth lost most of its gamma, in its second layer."""
    drift = np.full((5, 3), 0.01, dtype=np.float32)
    drift[3, 1] = 2.0
    column = np.full(5, -1.0, dtype=np.float32)
    return Tokens(
        ids=np.arange(5, dtype=np.int32),
        pieces=("It", " is", "\n", "forty", "-two"),
        versions=np.array([1, 1, 1, 2, 2]),
        logprobs=column,
        trained_logprobs=column - np.float32(0.5),
        log_gamma=-drift.mean(axis=1),
        drift=drift,
    )


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The names of the samples, in their order."""
    assert main(["rollouts", *map(str, arguments), "--json"]) == 0
    return [json.loads(line)["trajectory"] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["00000005/0/0", "00000005/0/1", "00000105/0/0", "00000105/0/1"]),
        (["-n", 1], ["00000005/0/0"]),
        (["--step", 2, "-n", 9], ["00000002/0/0", "00000002/0/1", "00000102/0/0", "00000102/0/1"]),
        (["--worst", "-n", 2], ["00000002/0/0", "00000002/0/1"]),
        (["--best", "-n", 2], ["00000200/0/0", "00000105/0/1"]),
        (["--best", "-n", 1, "--step", 2], ["00000102/0/1"]),
        (["--failed"], ["00000300/0/0", "00000200/0/0"]),
        (["--step", 5, "-n", 9], ["00000005/0/0", "00000005/0/1", "00000105/0/0", "00000105/0/1", "00000200/0/0"]),
        (["--failed", "--step", 2], []),
        (["--prompt", "00000102"], ["00000102/0/0", "00000102/0/1"]),
        (["--prompt", "row-102"], ["00000102/0/0", "00000102/0/1"]),
        (["--prompt", "row-102", "--best", "-n", 1], ["00000102/0/1"]),
    ],
    ids=lambda value: " ".join(map(str, value)) or "nothing",
)
def test_it_shows_what_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[object], expected: list[str]
) -> None:
    assert shown(capsys, folder, *options) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--step", "3"], r"step 3 has no samples in .*; steps with samples: 2, 5, 6"),
        (["--prompt", "row-9"], r"--prompt is 'row-9'; .* 00000002, row-2, 00000102, row-102, 00000005 and 6 more"),
        (["-n", "0"], "-n is 0; it must be at least 1"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["rollouts", str(folder), *options]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err)
    assert len(err.splitlines()) == 1


def test_a_run_without_samples_says_when_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollouts", str(tmp_path)]) == 2
    assert "no samples yet" in (err := capsys.readouterr().err)
    assert "learner.samples.groups" in err


def test_nothing_that_failed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SampleWriter(tmp_path, 1 << 30).add([sample()])
    assert main(["rollouts", str(tmp_path), "--failed"]) == 0
    assert capsys.readouterr() == ("", "every sample that was kept was trained on\n")


def test_a_sample_is_read_by_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollouts", str(folder), "-n", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("prompt    ask 5\n") == 1  # of both
    for line in (
        "sample    step 5 · 00000005/0/0 · row-5 · trained",
        "reward    0.4 · correct 1, format 0.5 · advantage +0.75 · verifier math 2",
        "tokens    5, ended by stop · versions 1 to 2 · log-ratio mean -0.500, largest -0.500",
        "response  It is",
        "          forty-two",
    ):
        assert f"{line}\n" in out
    assert re.search(r"gamma +mean 0\.\d+ · lowest 0\.51\d at token 3 'forty' \(layer 1: (2\.0|1\.9)\d+\), ", out)
    assert "\x1b" not in out


def test_what_others_said_stands_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segments = (
        Segment(Role.ASSISTANT, 2, True, "It is", 0.25),
        Segment(Role.TOOL, 3, False, "6 * 7\n= 42\x1b[2J"),
        Segment(Role.ASSISTANT, 3, True, "\nforty-two"),
    )
    SampleWriter(tmp_path, 1 << 30).add([sample(tokens=tokens(), segments=segments)])
    assert main(["rollouts", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = [
        "response  It is",
        "earned    0.25",
        "tool      6 * 7",
        r"          = 42\x1b[2J",
        "response  ",
        "          forty-two",
    ]
    assert "\n".join(lines) + "\n" in out
    assert main(["rollouts", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["segments"]
    assert [(each["role"], each["tokens"], each["is_sampled"]) for each in said] == [
        ("assistant", 2, True),
        ("tool", 3, False),
        ("assistant", 3, True),
    ]


def test_the_verifier_is_heard_and_a_terminal_is_not_commanded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollouts", str(folder), "--failed"]) == 0
    out = capsys.readouterr().out
    assert "stale" in out
    assert r"verifier  no answer\x1b[2J" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("x\x1b]0;title\x07", r"x\x1b]0;title\x07"),
        ("\r\x08\x9b2J", r"\r\x08\x9b2J"),
        ("right\u202eleft", r"right\u202eleft"),
        ("é 你好 😀", "é 你好 😀"),
        ("\u3000", "\u3000"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_gamma_has_colours_on_a_terminal_and_none_where_they_are_not_wanted(folder: Path) -> None:
    plain = environment(TERM="xterm-256color")
    plain.pop("NO_COLOR", None)
    out = on_a_terminal(folder, plain)
    assert re.search(COLOUR.pattern + "forty", out)
    assert not re.search(COLOUR.pattern + "It", out)
    without = on_a_terminal(folder, plain | {"NO_COLOR": "1"})
    assert "forty" in without
    assert not COLOUR.search(without)


def test_the_lower_bound_of_the_run_says_what_is_low(folder: Path) -> None:
    settings = {"learner": {"router_shift": {"gamma_min": 0.01}}}
    (folder / "settings").mkdir()
    (folder / "settings" / "learner.json").write_text(json.dumps(settings))
    out = on_a_terminal(folder, environment(TERM="xterm-256color"))
    assert "\x1b[31mforty" not in out


def test_a_torn_sample_hides_no_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder / "samples" / "step-00000002.bin"
    whole = data.read_bytes()
    data.write_bytes(b"\x00" * 20 + whole[20:])
    assert main(["rollouts", str(folder), "--step", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert "sample 00000002/0/0 at byte 0" in err


def on_a_terminal(folder: Path, env: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen([*ROUTERSHIFT, "rollouts", folder, "-n", "1"], stdout=theirs, env=env) as process:
        os.close(theirs)
        read = b""
        try:
            while part := os.read(ours, 1 << 16):
                read += part
        except OSError:  # how Linux says that the other side is closed
            pass
        os.close(ours)
    assert process.returncode == 0
    return read.decode()
