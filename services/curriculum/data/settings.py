"""Settings of data: the table [data], with a table [[data.train]] and [[data.eval]] for each source."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from services.curriculum.data.presets import PRESETS
from services.curriculum.data.variables import check_variables
from services.curriculum.held_out import HeldOutSettings
from shared.names import nearest
from shared.sources import ENDINGS, PROCEDURAL, is_file
from shared.table import Table

# Of the columns that a source maps, those that are no field of the reference.
ROLES = ("prompt", "problem", "reference", "id", "verifier", "priority")
_OF_NAMES = ("config", "split", "revision")  # keys of a data set by name
_SWITCHES = {"true": True, "on": True, "false": False, "off": False}


def _names_file(table: dict[str, Any]) -> bool:
    return is_file(str(table.get("source", "")))


def _unanswered(of_preset: dict[str, str], table: dict[str, Any], columns: dict[str, Any]) -> dict[str, str]:
    """The columns of a preset that the table does not answer in another way."""
    kept = dict(of_preset)
    if "verifier" in table:
        kept.pop("verifier", None)
    if "reference" in columns:
        kept = {name: text for name, text in kept.items() if name in ROLES}
    if "prompt" in columns or "choices" in columns:
        kept.pop("problem", None)
    if "answer" in columns:
        kept.pop("reference", None)
    return kept


class SourceSettings(Table):
    """Rows, and how a prompt and a reference are made of each."""

    source: str = Field(
        min_length=1,
        description="a JSON Lines, JSON, CSV, TSV or Parquet file, or one of these with .gz; a glob of them; or the "
        "name of a data set for the library datasets; or reasoning_gym:TASK. A path is relative to the recipe",
    )
    config: str | dict[str, Any] | None = Field(
        None, description="configuration of a data set; of a reasoning_gym task a table of its settings, size and seed"
    )
    split: str | None = Field(None, description="split of a data set; default: train in train, test in eval")
    revision: str | None = Field(None, description="branch, tag or commit of a data set")
    preset: str | None = Field(None, description="form of a known data set, which the other keys then change")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="where prompt, reference, id, verifier, priority, problem (what is compared to find rows that are "
        "the same; default: prompt), and any field of the reference stand in a row: a column, with dots into tables in "
        "it, or a Jinja expression {{ ... }} over the row",
    )
    prompt: str | None = Field(
        None,
        description="Jinja template over the row that makes the text of the user; default: columns.prompt as it is",
    )
    system: str | None = Field(None, description="message of the system, put before the prompt")
    chat_template: bool | Path = Field(
        True,
        description="whether the model's chat template renders the prompt, or a file with another one, relative to the "
        "recipe",
    )
    template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="variables of the chat template, such as enable_thinking; not those that are set here, such as "
        "add_generation_prompt",
    )
    tools: str | None = Field(None, description="column of the tools that the chat template presents")
    filter: str | None = Field(
        None,
        description="Jinja expression over the row; a row where it is false is left out. Sandboxed, never Python: a "
        "recipe alone runs no code; what needs a program is computed into a column of the file before",
    )
    verifier: str | None = Field(
        None,
        description="who judges: a name in [reward.verifiers], or a table {kind = ..., settings}; not needed where the "
        "environment rewards",
    )
    environment: str | None = Field(
        None,
        min_length=1,
        description="name of the environment that responses are episodes of; its tools stand in the prompt",
    )

    @model_validator(mode="before")
    @classmethod
    def _begin_with_preset(cls, table: Any) -> Any:
        """What the table does not say is as in its preset; its columns are added to those of the preset."""
        if isinstance(table, dict) and str(table.get("source", "")).startswith(PROCEDURAL):
            table = {"preset": "reasoning_gym", **table}
        name = table.get("preset") if isinstance(table, dict) else None
        if name is None:
            return table
        if name not in PRESETS:
            meant = nearest(str(name), PRESETS)
            raise ValueError(f"preset is {name!r}; did you mean {meant!r}? Known: {', '.join(PRESETS)}")
        preset = {key: value for key, value in PRESETS[name].items() if key not in _OF_NAMES or not _names_file(table)}
        columns = table.get("columns", {})
        if isinstance(columns, dict):
            columns = {**_unanswered(preset["columns"], table, columns), **columns}
        return {**preset, **table, "columns": columns}

    @field_validator("chat_template", mode="before")
    @classmethod
    def _is_switch_or_path(cls, value: Any) -> Any:
        return _SWITCHES.get(value, Path(value)) if isinstance(value, str) else value

    @field_validator("template_kwargs")
    @classmethod
    def _leaves_what_is_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_variables(value)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if is_file(self.source):
            for name in _OF_NAMES:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for a data set by name; source is the file {self.source}")
        is_procedural = self.source.startswith(PROCEDURAL)
        if self.config is not None and isinstance(self.config, dict) is not is_procedural:
            kind = "a table of the task's settings" if is_procedural else "the name of a configuration"
            raise ValueError(f"config is {self.config!r}; for source {self.source} it is {kind}")
        if self.chat_template is False:
            for name in ("system", "tools", "template_kwargs"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs the chat template; take it out or set chat_template = true")
        if "prompt" not in self.columns and self.prompt is None:
            raise ValueError("columns.prompt and prompt are missing; set one, as columns.prompt = 'question'")
        if self.environment is not None:
            self._leaves_prompt_to_environment()
        elif self.verifier is None and "verifier" not in self.columns:
            raise ValueError("verifier is missing; set it, as verifier = 'math'")
        return self

    def _leaves_prompt_to_environment(self) -> None:
        """A conversation is rendered where the environment's tools are known, by the template of the model alone."""
        if self.tools is not None:
            raise ValueError(
                f"tools is {self.tools!r}, and environment {self.environment!r} has tools of its own; take one out"
            )
        if self.template_kwargs or isinstance(self.chat_template, Path):
            name = "template_kwargs" if self.template_kwargs else "chat_template"
            raise ValueError(
                f"{name} is {getattr(self, name)}, and environment {self.environment!r} renders its prompts by the "
                f"chat template of the model; take {name} out"
            )

    @property
    def label(self) -> str:
        """The name of the file, or of the data set, as it can stand in records and metrics."""
        stem = self.source.removeprefix(PROCEDURAL).rstrip("/").rpartition("/")[2].removesuffix(".gz")
        for ending in ENDINGS:
            stem = stem.removesuffix(ending)
        return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "data"


class TrainSettings(SourceSettings):
    """One source of training problems."""

    weight: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="share of the prompts, relative to others; default: by rows",
    )
    repeats: int = Field(1, ge=1, description="how often an epoch has each row")


class EvalSettings(SourceSettings, HeldOutSettings):
    """One held-out set: its rows, and how it is evaluated."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][\w.-]*$", description="name in records and metrics; default: that of the source"
    )
    every: int | None = Field(
        None, ge=0, description="versions between evaluations; 0: first and last only; default: run.evaluate_every"
    )

    @property
    def label(self) -> str:
        """The name in records and metrics."""
        return self.name or super().label


class DataSettings(Table):
    """What is trained on and evaluated on, where run.task names no task."""

    train: tuple[TrainSettings, ...] = Field((), description="sources of training problems")
    eval: tuple[EvalSettings, ...] = Field((), description="held-out sets")
    held_out_share: float = Field(
        0.05, gt=0, lt=1, description="share of the training rows that is held out where there is no [[data.eval]]"
    )
    contamination: Literal["drop", "refuse", "off"] = Field(
        "drop", description="what becomes of a training row whose prompt stands in a held-out set"
    )
    duplicates: Literal["drop", "refuse", "keep"] = Field(
        "drop",
        description="what becomes of a row that asks what another row of train, or of the same held-out set, asks: the "
        "same problem, with the same tools, verifier and reference",
    )
    max_bad_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of unusable rows of a source above which the start is refused",
    )
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="longest prompt; longer ones are left out. Default: what the model leaves room for"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.eval and not self.train:
            raise ValueError("eval has sources and train has none; add a table [[data.train]]")
        labels = [source.label for source in self.eval]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"two tables of eval have the name {twice!r}; set name in one of them")
        weights = [source.weight for source in self.train]
        if None in weights and any(weights):
            raise ValueError("some tables of train have a weight and some have none; set it in all or in none")
        return self
