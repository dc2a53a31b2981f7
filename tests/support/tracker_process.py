"""A service's records for trackers, in a process of their own: an order on stdin, the counts and the log on stdout."""

import contextlib
import io
import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

from shared.errors import RouterShiftError
from shared.settings import BaseSettings, RunSettings
from shared.tracking.recording import TRACKED, Recording
from shared.tracking.trackers.settings import TrackingSettings


def main() -> None:
    """Reads an order.

    trackers, service, records (with "step" or "version"), folder (of runs), tracking (settings), seed (of the run), and
    largest_file: bytes above which no file may grow, as on a disk that is full (EFBIG in place of ENOSPC).
    """
    order: dict[str, Any] = json.load(sys.stdin)
    said = io.StringIO()
    logging.basicConfig(level=logging.INFO, stream=said)
    folder = Path(order["folder"])
    run = RunSettings(
        id="test", folder=folder, model=folder, trackers=tuple(order["trackers"]), seed=order.get("seed", 0)
    )
    settings = BaseSettings(run=run, tracking=TrackingSettings.model_validate(order.get("tracking", {})))
    if limit := order.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        recording = Recording(settings, order["service"])
    except RouterShiftError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return
    for record in order["records"]:
        with contextlib.suppress(OSError):
            recording.add("step" if "step" in record else "evaluation", record)
    recording.close()
    counts = {
        f"{sample.labels['tracker']} {sample.labels['outcome']}": int(sample.value)
        for metric in TRACKED.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    print(json.dumps({"counts": counts, "log": said.getvalue()}))


if __name__ == "__main__":
    main()
