"""MLflow: one run for both services, found by its tag."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar, TypeVar

from shared.process.ownership import locked
from shared.settings import BaseSettings
from shared.tracking.base import Kind, Tracker
from shared.tracking.trackers.flat import flat_config, flatten
from shared.tracking.trackers.packages import require
from shared.tracking.trackers.urls import without_secrets

T = TypeVar("T")

_RUN_TAG = "routershift.run"
_LONGEST_VALUE = 6000  # characters; MLflow refuses longer parameters
_MOST_METRICS = 1000  # in a request
_MOST_PARAMETERS = 100  # or tags in a request
_LOCK_SECONDS = 60.0


class MlflowTracker(Tracker):
    name: ClassVar[str] = "mlflow"

    def __init__(self, settings: BaseSettings, service: str) -> None:
        super().__init__(settings, service)
        require(self.name, "mlflow-skinny", "sqlalchemy", "alembic")
        self._own = settings.tracking.mlflow
        self._uri = (
            self._own.uri
            or os.environ.get("MLFLOW_TRACKING_URI")
            or f"sqlite:///{self.run.folder.absolute() / 'mlflow.db'}"
        )
        self._client: Any = None
        self._id = ""

    def open(self) -> str:
        """Finds the run or makes it, and adds the settings of this service to its parameters."""
        # Its own reports to its makers are on unless this says otherwise, before the import.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        with locked(
            self.run.path, "mlflow", _LOCK_SECONDS
        ):  # the other service makes the same tables, and the same run
            self._client = MlflowClient(tracking_uri=self._uri)
            experiment = self._experiment()
            self._id = self._find(experiment) or self._make(experiment)
        self._client.update_run(self._id, status="RUNNING")  # it has ended before where it is resumed
        self._add_config()
        return f"run {self._id} of experiment {self._own.experiment!r} in {without_secrets(self._uri)}"

    def log(self, kind: Kind, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        flat, now = flatten(kind, record), int(time.time() * 1000)
        for numbers in _batches(flat.numbers.items(), _MOST_METRICS):
            metrics = [Metric(name, value, now, flat.step) for name, value in numbers]
            self._client.log_batch(self._id, metrics=metrics)
        for texts in _batches(flat.texts.items(), _MOST_PARAMETERS):
            self._client.log_batch(self._id, tags=[RunTag(name, text[:_LONGEST_VALUE]) for name, text in texts])

    def close(self) -> None:
        """The run has ended with the learner; the last evaluation may come after that."""
        if self.service == "learner":
            self._client.set_terminated(self._id)

    def _experiment(self) -> str:
        """Its id."""
        from mlflow.exceptions import MlflowException

        name = self._own.experiment
        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another run has made it since
                if (found := self._client.get_experiment_by_name(name)) is None:
                    raise
        return str(found.experiment_id)

    def _find(self, experiment: str) -> str | None:
        """The id of the run; where services that share no folder made two at once, all take the older one."""
        condition = f"tags.`{_RUN_TAG}` = '{self.run.id}'"
        found = self._client.search_runs([experiment], condition, order_by=["attributes.start_time ASC"], max_results=1)
        return str(found[0].info.run_id) if found else None

    def _make(self, experiment: str) -> str:
        named = dict(tag.partition("=")[::2] if "=" in tag else (tag, "true") for tag in self._own.tags)
        made = self._client.create_run(experiment, tags={**named, _RUN_TAG: self.run.id}, run_name=self.run.id)
        return self._find(experiment) or str(made.info.run_id)

    def _add_config(self) -> None:
        """Parameters never change in MLflow: a setting that a resumed run has changed becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self._id).data.params
        settings = {name: value[:_LONGEST_VALUE] for name, value in flat_config(self.settings).items()}
        new = [Param(name, value) for name, value in settings.items() if name not in known]
        changed = [RunTag(name, value) for name, value in settings.items() if known.get(name, value) != value]
        for params in _batches(new, _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=params)
        for tags in _batches(changed, _MOST_PARAMETERS):
            self._client.log_batch(self._id, tags=tags)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
