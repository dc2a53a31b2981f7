"""The model card of an export: what was trained on what, how far it came, and how to load it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from routershift.v1 import trajectory_pb2 as pb
from services.cli.recipe import Recipe
from shared.settings import RunSettings
from shared.weights import published

ADAPTERS_IN_VLLM = (
    "For peft. vLLM applies them where the model is dense (`--enable-lora`), and of a model with routed experts "
    "never on a CPU: for it, export the merged model"
)
# Tables that say what was learnt, and of these not where a service listened or how long it waited.
_TABLES = ("run", "rollout", "data", "curriculum", "learner", "reward", "environments", "generation")
_HIDDEN = re.compile(r"(^|\.)(host|folder|threads|token|key)$|_(port|address|seconds)$|(^|\.)port$")
_SNAPSHOT = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+/?$", re.ASCII)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Card:
    """All that a model card says; every figure comes from the records of the run."""

    run: str
    version: int
    settings: Mapping[str, Mapping[str, Any]]  # tables as the services had them; may be empty
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    manifest: pb.WeightsManifest

    @property
    def _is_adapter(self) -> bool:
        return self.manifest.folder == published.ADAPTER

    @property
    def _model(self) -> str:
        """A name on the Hub where the folder is a snapshot in its cache, else the name of the folder."""
        return str(without_place(self.settings.get("run", {}).get("model", "")))

    def text(self, name: str) -> str:
        """Markdown with the front matter of the Hugging Face Hub. Args: name: of the folder."""
        return "\n".join([*self._front_matter(), "", *self._body(name)]) + "\n"

    def _front_matter(self) -> Iterator[str]:
        yield "---"
        yield f"library_name: {'peft' if self._is_adapter else 'transformers'}"
        yield "pipeline_tag: text-generation"
        if _HUB_NAME.fullmatch(self._model):
            yield f"base_model: {self._model}"
            yield f"base_model_relation: {'adapter' if self._is_adapter else 'finetune'}"
        yield "tags:"
        yield from ("- reinforcement-learning", "- routershift")
        yield "---"

    def _body(self, name: str) -> Iterator[str]:
        what = "LoRA adapters" if self._is_adapter else "a model"
        made_of = f" of `{self._model}`" if self._model else ""
        yield f"# {name}"
        yield ""
        yield (
            f"Version {self.version} of run `{self.run}`: {what}{made_of}, trained by reinforcement learning with "
            f"RouterShift {_own_version()}."
        )
        yield from _section("Use", self._usage(name))
        yield from _section("Held-out accuracy", self._accuracy())
        yield from _section("Training", self._training())
        yield from _section("Data", self._data())
        yield from _section("Settings", self._settings())
        yield from _section("Files", self._files())

    def _usage(self, name: str) -> Iterator[str]:
        yield "```python"
        yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
        if self._is_adapter:
            yield "from peft import PeftModel"
        yield ""
        yield f"tokenizer = AutoTokenizer.from_pretrained({name!r})"
        base = self._model or "the model that the run began with"
        yield f"model = AutoModelForCausalLM.from_pretrained({(base if self._is_adapter else name)!r})"
        if self._is_adapter:
            yield f"model = PeftModel.from_pretrained(model, {name!r})"
        yield "```"
        yield f"\n{ADAPTERS_IN_VLLM}." if self._is_adapter else f"\n`vllm serve {name}` serves it."

    def _accuracy(self) -> Iterator[str]:
        """One row an evaluation; this version's is bold."""
        if not self.evaluations:
            return
        ks = list(dict.fromkeys(k for evaluation in self.evaluations for k in evaluation["pass_at_k"]))
        yield _row(["set", "version", "pass@1", *(f"pass@{k}" for k in ks), "greedy", "problems", "samples"])
        yield _row(["---", *["---:"] * (5 + len(ks))])
        for each in self.evaluations:
            shares = [each["accuracy"], *(each["pass_at_k"].get(k) for k in ks), each["greedy_accuracy"]]
            label = f"**{each['version']}**" if each["version"] == self.version else each["version"]
            yield _row([each["set"], label, *map(_share, shares), each["problems"], each["samples"]])

    def _training(self) -> Iterator[str]:
        done = [step for step in self.steps if step["step"] <= self.version]
        if not done:
            return
        last = done[-1]
        yield f"- {len(done)} steps, the last of them at {last.get('time', 'an unknown time')}"
        for name, key in (
            ("mean reward of the last step", "reward_mean"),
            ("accuracy on the prompts of the last step", "train_accuracy"),
            ("entropy in the last step (nats)", "entropy"),
            ("router shift factor gamma in the last step", "gamma_mean"),
        ):
            if last.get(key) is not None:
                yield f"- {name}: {last[key]:.4g}"
        yield f"- oldest rollout trained on: {max(step['staleness_max'] for step in done)} versions behind"

    def _data(self) -> Iterator[str]:
        data, run = self.settings.get("data") or {}, self.settings.get("run", {})
        for kind in ("train", "eval"):
            for source in data.get(kind) or ():
                yield f"- {kind}: `{without_place(source.get('source'))}`"
        if not data.get("train") and run.get("task"):
            yield f"- task: `{run['task']}`"

    def _settings(self) -> Iterator[str]:
        """Those that differ from their default values."""
        if not self.settings:
            return
        usual = Recipe(run=RunSettings.model_validate({"id": "none", "model": "none"})).model_dump(mode="json")
        changed = {
            name: value
            for table in _TABLES
            for name, value in _changed(table, self.settings.get(table) or {}, usual.get(table) or {})
        }
        yield "Those that are not the default:"
        yield ""
        yield "```toml"
        yield from (f"{name} = {json.dumps(without_place(value))}" for name, value in changed.items())
        yield "```"

    def _files(self) -> Iterator[str]:
        yield _row(["file", "bytes", "SHA-256"])
        yield _row(["---", "---:", "---"])
        for file in self.manifest.files:
            yield _row([file.name, file.size_bytes, f"`{file.sha256}`"])


def without_place(value: Any) -> Any:
    """A setting as others may see it: names in place of absolute paths, at any depth, and without what is not set."""
    if isinstance(value, str):
        if snapshot := _SNAPSHOT.search(value):
            return f"{snapshot[1]}/{snapshot[2]}"
        return value.rstrip("/").rpartition("/")[2] if value.startswith("/") else value
    if isinstance(value, Mapping):
        return {key: without_place(inner) for key, inner in value.items() if inner not in (None, {}, [])}
    return [without_place(inner) for inner in value] if isinstance(value, list) else value


def _changed(prefix: str, table: Mapping[str, Any], usual: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted names and values."""
    for key, value in table.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and isinstance(usual.get(key), Mapping) and usual[key]:
            yield from _changed(name, value, usual[key])
        elif value is not None and value != usual.get(key) and not _HIDDEN.search(name):
            yield name, value


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    """Nothing at all where there is nothing to say."""
    if said := list(lines):
        yield from ("", f"## {title}", "", *said)


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _own_version() -> str:
    try:
        return version("routershift")
    except PackageNotFoundError:  # run from its sources
        return "(not installed)"
