"""TensorBoard: event files in the run's folder, which `tensorboard --logdir runs` shows."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from shared.settings import BaseSettings
from shared.tracking.base import Kind, Tracker
from shared.tracking.trackers.flat import config, flatten
from shared.tracking.trackers.packages import require


class TensorBoardTracker(Tracker):
    """One folder a service: TensorBoard's reader follows one event file in a folder at a time, the newest."""

    name: ClassVar[str] = "tensorboard"

    def __init__(self, settings: BaseSettings, service: str) -> None:
        super().__init__(settings, service)
        require(self.name, "tensorboard")
        parent = settings.tracking.tensorboard.folder
        runs = parent / self.run.id if parent else self.run.path / "tensorboard"
        self._folder: Path = runs / service
        self._writer: Any = None
        self._has_config = False

    def open(self) -> str:
        """Starts a new event file, beside those of earlier starts."""
        self._start()
        return f"event files in {self._folder}"

    def log(self, kind: Kind, record: Mapping[str, Any]) -> None:
        """Every record is on disk when this returns."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            self._start()
        flat = flatten(kind, record)
        values = [Summary.Value(tag=name, simple_value=value) for name, value in flat.numbers.items()]
        values += [_text(name, text) for name, text in flat.texts.items()]
        if not self._has_config:
            # A resumed run takes steps again that came after its checkpoint: this makes the reader forget them.
            start = Event(wall_time=time.time(), step=flat.step, session_log=SessionLog(status=SessionLog.START))
            self._write(start)
            values.append(_text("config", f"```json\n{json.dumps(config(self.settings), indent=1)}\n```"))
        self._write(Event(wall_time=time.time(), step=flat.step, summary=Summary(value=values)))
        self._has_config = True

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _start(self) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder), filename_suffix=f".{self.service}")

    def _write(self, event: Any) -> None:
        try:
            self._writer.add_event(event)
            self._writer.flush()
        except BaseException:
            # Half an event may be in the file, and no reader goes beyond it.
            self._writer = None
            raise


def _text(tag: str, text: str) -> Any:
    """A value of TensorBoard's page of texts, in Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    return Summary.Value(
        tag=tag,
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        tensor=TensorProto(
            dtype=DT_STRING,
            string_val=[text.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        ),
    )
