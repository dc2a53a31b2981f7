"""Two runs on one machine, which start at the same time with the default ports and without names."""

import json
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from shared.tracking import records
from tests.support.command import RECIPE, Start
from tests.support.torchrun import until

SMALL = {
    "run.steps": 2,
    "run.groups_per_step": 4,
    "rollout.n": 4,
    "curriculum.evaluation.problems": 8,
    "curriculum.evaluation.sampling.n": 1,
    "generation.engine": "torch",
}
FLAGS = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]


def test_two_runs_of_one_second_come_to_their_end_although_another_program_takes_a_port(
    start: Start, tmp_path: Path
) -> None:
    """The program listens at ports that both runs have chosen, before their services do."""
    first, second = (start("run", str(RECIPE), *FLAGS) for _ in range(2))

    def endpoints() -> list[Path]:
        return sorted((tmp_path / "runs").glob(f"run-*/{records.ENDPOINTS}"))

    until(lambda: len(endpoints()) == 2, timeout=120)
    stolen = []
    with ExitStack() as held:
        for file in endpoints():
            url = json.loads(file.read_text())["services"]["generation"]["metrics"]
            program = held.enter_context(socket.socket())
            program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            program.bind(("127.0.0.1", urlsplit(url).port))
            program.listen()
            stolen.append((file, url))
        ends = [run.finish(timeout=240) for run in (first, second)]
    for run, (code, out, err) in zip((first, second), ends, strict=True):
        assert code == 0, err
        assert "they start again at ports that are free now" in err
        assert json.loads(out.splitlines()[-1])["steps"] == 2
        assert run.nothing_left(), run.alive()
        said = [line for line in err.splitlines() if "default ports" in line]
        assert "generation.metrics_port" in said[-1], said
    used = [json.loads(file.read_text())["services"] for file, _ in stolen]
    for services, (_, url) in zip(used, stolen, strict=True):
        assert services["generation"]["metrics"] != url
    assert not {str(service) for service in used[0].values()} & {str(service) for service in used[1].values()}
