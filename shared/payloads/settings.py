"""The table [payloads]: where the arrays of trajectories lie while their groups are in flight."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from shared.table import Table

_SCHEMES = ("s3", "file")


class PayloadSettings(Table):
    """Where token ids, log-probs and router traces lie while a group is in flight; its text is always on the stream."""

    store: Literal["stream", "folder", "object_store"] = Field(
        "stream",
        description="stream: in the entries of the streams, for small runs; folder: files on a volume that generation, "
        "environments and learner see; object_store: such as S3, by the package obstore",
    )
    folder: Path | None = Field(None, description="of the store folder; default: payloads in the run's folder")
    url: str = Field(
        "", description="of the store object_store: s3://BUCKET/PREFIX or file:///FOLDER; keys and endpoint as AWS_..."
    )
    fsync: bool = Field(
        True,
        description="whether a file is durable before an entry refers to it; else a power loss may take arrays",
    )
    outage_seconds: float = Field(
        60.0,
        gt=0,
        description="how long a service rides out a store that fails; a full one is waited for",
    )
    sweep_seconds: float = Field(60.0, gt=0, description="time between the learner's sweeps of what nothing refers to")
    orphan_seconds: float = Field(
        600.0, ge=0, description="age below which a sweep leaves a payload, whether anything refers to it or not"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.folder is not None and self.store != "folder":
            raise ValueError(f"folder is {self.folder}, and store is {self.store!r}; set store to 'folder'")
        if bool(self.url) != (self.store == "object_store"):
            raise ValueError(
                f"url is {self.url!r}, and store is {self.store!r}; 'object_store' needs one, no other has it"
            )
        if self.url and urlsplit(self.url).scheme not in _SCHEMES:
            raise ValueError(f"url is {self.url!r}; expected it to begin with s3:// or file://")
        if self.url and (urlsplit(self.url).username or urlsplit(self.url).password):
            raise ValueError("url names a user or a password; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return self
