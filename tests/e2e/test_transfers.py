"""A run whose generation sees no weights on disk, as on another machine: the network brings each version."""

import json
import signal
from pathlib import Path

from shared.tracking import records
from tests.support.command import RECIPE, Invocation, Start, settings
from tests.support.torchrun import free_port, until

STEPS = 5
RESTART_AT = 2


def test_a_run_whose_generation_has_no_folder_of_weights(start: Start, redis_url: str, tmp_path: Path) -> None:
    """What an engine does with weights that arrive is in tests/contract/generation/engines/test_engine_transfers.py."""
    name, generation, reward = "transfer", free_port(), free_port()
    flags = settings(
        run__id=name,
        run__steps=STEPS,
        run__weights_transfer="broadcast",
        generation__port=generation,
        generation__max_num_seqs=32,
        reward__port=reward,
        curriculum__generation_address=f"127.0.0.1:{generation}",
        curriculum__reward_address=f"127.0.0.1:{reward}",
        streams__idle_seconds=5,
    )

    def serve(service: str, *more: str) -> Invocation:
        arguments = ("serve", service, "--recipe", str(RECIPE), *flags, *more)
        return start(*arguments, environment={"REDIS_URL": redis_url, "OMP_NUM_THREADS": "1"})

    def done(file: str, step: int, field: str = "step") -> bool:
        for invocation in services.values():
            assert invocation.process.poll() is None, invocation.process.communicate()
        return any(record[field] >= step for record in records.read(tmp_path / "runs" / name / file))

    elsewhere = ("--set", "run.folder=elsewhere")
    services = {service: serve(service) for service in ("learner", "reward", "curriculum")}
    services["generation"] = serve("generation", *elsewhere)
    until(lambda: done(records.LEARNER, RESTART_AT), timeout=180)
    services["generation"].process.send_signal(signal.SIGKILL)
    services["generation"].finish(timeout=10)
    services["generation"] = serve("generation", *elsewhere)  # which no later step may ever reach
    until(lambda: done(records.EVALUATIONS, STEPS, "version"), timeout=240)
    for invocation in services.values():
        invocation.process.send_signal(signal.SIGTERM)
    for invocation in services.values():
        code, _, err = invocation.finish(timeout=60)
        assert code == 0, err
        assert "Traceback" not in err
        assert invocation.nothing_left(), invocation.alive()
    folder = tmp_path / "elsewhere" / name
    assert not (folder / "weights").exists()
    log = [json.loads(line) for line in (folder / "logs/generation.jsonl").read_text().splitlines()]
    served = [entry["message"] for entry in log if "serving version" in entry["message"]]
    assert any(f"serving version {STEPS} " in message for message in served), served
