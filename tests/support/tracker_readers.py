"""What a tracker has of the run "test", read back by its own package: an order on stdin, JSON on stdout."""

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def tensorboard(folder: Path, order: dict[str, Any]) -> Any:
    """By service: scalars as [[step, value], ...] by tag, and texts by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for service in sorted((folder / "test" / "tensorboard").iterdir()):
        events = EventAccumulator(str(service))
        events.Reload()
        found[service.name] = {
            "scalars": {t: [[e.step, e.value] for e in events.Scalars(t)] for t in events.Tags()["scalars"]},
            "texts": {t: events.Tensors(t)[-1].tensor_proto.string_val[0].decode() for t in events.Tags()["tensors"]},
        }
    return found


def wandb(folder: Path, order: dict[str, Any]) -> Any:
    """By run id, in order of the starts: what each start told: group, job type, project, tags, config, history."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[Any]] = {}
    for file in sorted((folder / "test" / "wandb").glob("offline-run-*/*.wandb")):
        start: dict[str, Any] = {"history": [], "axis": None}
        for data in _wandb_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("run"):
                start |= {"group": record.run.run_group, "job": record.run.job_type, "project": record.run.project}
                start |= {"tags": list(record.run.tags), "id": record.run.run_id}
                start["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("history"):
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                start["history"].append({name: value for name, value in items.items() if not name.startswith("_")})
            elif record.HasField("metric"):
                start["axis"] = record.metric.step_metric
        found.setdefault(start["id"], []).append(start)
    return found


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """The messages of an offline run's file: LevelDB's log format, after a header of seven bytes."""
    position, message = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            yield message
            message = b""


def mlflow(folder: Path, order: dict[str, Any]) -> Any:
    """All runs of the experiment: id, status, tags, parameters, and metrics as [[step, value], ...] by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(order.get("experiment", "routershift"))
    return [
        {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "status": run.info.status,
            "tags": run.data.tags,
            "params": run.data.params,
            "metrics": {
                name: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
        }
        for run in client.search_runs([experiment.experiment_id])
    ]


def trackio(folder: Path, order: dict[str, Any]) -> Any:
    """By run name: its group, config and logs; and how many runs there are."""
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    names = SQLiteStorage.get_runs("routershift")
    return {
        name: {
            "config": SQLiteStorage.get_run_config("routershift", name),
            "logs": SQLiteStorage.get_logs("routershift", name),
            "runs": names.count(name),
        }
        for name in names
    }


READERS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
    "trackio": trackio,
}


if __name__ == "__main__":
    order = json.load(sys.stdin)
    print(json.dumps(READERS[order["tracker"]](Path(order["folder"]), order)))
