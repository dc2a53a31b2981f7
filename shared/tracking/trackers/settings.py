"""The table [tracking]: how the experiment trackers that `run.trackers` names are used.

Secrets have no setting: each package reads its own from the environment or from its own files.
"""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from shared.table import Table, Texts


class TensorBoardSettings(Table):
    """TensorBoard: event files. It has no projects and no tags: a folder is a run."""

    folder: Path | None = Field(
        None, description="where each run gets a folder of its name; default: tensorboard/ in the run's own folder"
    )


class WandbSettings(Table):
    """Weights & Biases. Its key is in WANDB_API_KEY, or where `wandb login` puts it."""

    project: str = Field("routershift", min_length=1, description="project of the runs")
    entity: str | None = Field(None, description="user or team that owns the project; default: that of the key")
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="offline writes to the folder alone, for `wandb sync` later; default: WANDB_MODE, or else online",
    )
    folder: Path | None = Field(
        None, description="where its folder wandb/ lies, with what is not sent yet; default: the run's folder"
    )
    tags: Texts = Field((), description="tags of the runs, as in one,two")
    start_seconds: float = Field(90.0, gt=0, description="how long the server may take to accept a run")


class MlflowSettings(Table):
    """MLflow. Credentials are in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."""

    uri: str | None = Field(
        None,
        min_length=1,
        description="tracking server or store, such as http://127.0.0.1:5000; default: MLFLOW_TRACKING_URI, or else "
        "the SQLite file mlflow.db beside the folders of runs, which needs no server",
    )
    experiment: str = Field("routershift", min_length=1, description="experiment of the runs; made where it is missing")
    tags: Texts = Field((), description="tags of the run, as in team=moe,purpose=ablation; one without = is true")

    @model_validator(mode="after")  # the error of a table does not show the value, and that of a key does
    def _uri_holds_no_secret(self) -> Self:
        if self.uri is not None and urlsplit(self.uri).password:
            raise ValueError(
                "uri holds a password, which the run's folder would keep in clear text; take it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


class TrackioSettings(Table):
    """Trackio. A token is in HF_TOKEN, or TRACKIO_WRITE_TOKEN for a server of one's own at TRACKIO_SERVER_URL."""

    project: str = Field("routershift", min_length=1, description="project of the runs")
    folder: Path | None = Field(
        None,
        description="where its SQLite files are; default: TRACKIO_DIR, or else trackio/ beside the folders of runs",
    )
    space: str | None = Field(
        None,
        min_length=1,
        description="OWNER/NAME of a Hugging Face Space to log to; default: TRACKIO_SPACE_ID, or else the folder alone",
    )


class TrackingSettings(Table):
    """What all experiment trackers have in common."""

    max_waiting: int = Field(
        1000, ge=1, description="records that may wait for a slow tracker; those above are dropped and counted"
    )
    close_seconds: float = Field(
        10.0,
        gt=0,
        description="how long a service that ends waits for its trackers, all together; stays below drain_seconds of "
        "learner and curriculum",
    )
    tensorboard: TensorBoardSettings = TensorBoardSettings()
    wandb: WandbSettings = WandbSettings()
    mlflow: MlflowSettings = MlflowSettings()
    trackio: TrackioSettings = TrackioSettings()
