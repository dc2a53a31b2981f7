"""Settings of an environment in a file."""

from pathlib import Path
from typing import Any

from pydantic import Field

from services.environments.base import EnvironmentSettings
from shared.table import Texts

NAME = "environment"  # at the server of its process


class FileSettings(EnvironmentSettings):
    """Which class of which file, and how long its process may take."""

    file: Path = Field(
        description="Python file with a class that is an Environment; in a recipe, relative to the recipe"
    )
    class_name: str | None = Field(None, description="its name; default: the only environment in the file")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="a table of its own settings, [environments.named.NAME.settings]"
    )
    variables: Texts = Field(
        (), description="names of environment variables of the service that its process sees, such as a key"
    )
    start_seconds: float = Field(60.0, gt=0, description="deadline of the start of its process: imports included")
    answer_seconds: float = Field(
        30.0,
        gt=0,
        description="deadline of each answer; a process that does not even say so then is killed, and started again. "
        "Below environments.turn_seconds",
    )
    observation_tokens: int = Field(1 << 20, ge=1, description="bound of what leaves its process, as in [environments]")
    source: str | None = Field(
        None, description="what is run in the place of the file's text; the service sets it to that text when it starts"
    )
