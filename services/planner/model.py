"""What a model's config and the shapes of its tensors say of its size. No weights are read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from services.planner.catalogue import CONFIGS
from shared.errors import InvalidInputError, NotFoundError
from shared.models.folder import INDEX, read_json, tensor_shapes, weight_files
from shared.models.layout import text_config
from shared.models.loading import described_model

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}  # bytes, by the name of a dtype
_EXPERTS = re.compile(r"\bexperts\.")  # not of shared_experts
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_DOWN = re.compile(r"\b(down_proj|w2)\b")  # the last matrix of a feed-forward part


@dataclass(frozen=True)
class Layer:
    """A decoder layer, in values of one token."""

    parameters: int
    routed: int  # those of its experts between which the router chooses
    experts: int  # 0: dense
    top_k: int  # experts that a token activates; 0: dense
    inner: (
        int  # intermediate values of its feed-forward part: of the experts that a token activates, and of shared ones
    )
    attended: int  # values that attention hands to its output projection
    key: int  # values of the keys
    normalises_queries: bool


@dataclass(frozen=True)
class Model:
    """A language model."""

    config: Mapping[str, Any]
    parameters: int
    shapes: Mapping[str, tuple[int, ...]]  # by tensor; empty where the weights are not here
    width: int  # bytes of a parameter as the folder has it

    @cached_property
    def text(self) -> Mapping[str, Any]:
        return text_config(self.config)

    def number(self, *names: str) -> int:
        """The first of these keys that the config has; 0 where it has none."""
        return next((self.text[name] for name in names if isinstance(self.text.get(name), int)), 0)

    @property
    def hidden(self) -> int:
        return self.number("hidden_size")

    @property
    def vocabulary(self) -> int:
        return self.number("vocab_size")

    @property
    def top_k(self) -> int:
        """Experts that a token activates; 0 for a dense model."""
        return self.number("num_experts_per_tok", "moe_topk", "top_k_experts") if self.experts else 0

    @property
    def experts(self) -> int:
        return self.number("num_experts", "n_routed_experts", "num_local_experts")

    @property
    def kv_width(self) -> int:
        """Values that a token adds to the KV cache of all layers; 0 where the config does not say."""
        layers = self.number("num_hidden_layers")
        if latent := self.number("kv_lora_rank"):
            return layers * (latent + self.number("qk_rope_head_dim"))
        heads = self.number("num_attention_heads")
        size = self.number("head_dim") or (self.hidden // heads if heads else 0)
        return 2 * layers * (self.number("num_key_value_heads") or heads) * size

    @property
    def has_windows(self) -> bool:
        """Whether some layers keep less than the whole sequence."""
        kinds = self.text.get("layer_types") or ()
        return any(kind != "full_attention" for kind in kinds)

    @cached_property
    def routed_parameters(self) -> int:
        """Those of all experts between which routers choose."""
        return sum(count(name, shape) for name, shape in self.shapes.items() if _EXPERTS.search(name))

    @cached_property
    def active_parameters(self) -> int:
        """Those that compute for one token: K of E experts, and the head without the embedding that is looked up."""
        idle = 1 - self.top_k / self.experts if self.experts else 0.0
        looked_up = 0 if self.text.get("tie_word_embeddings") else self.hidden * self.vocabulary
        return self.parameters - round(idle * self.routed_parameters) - looked_up

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The decoder layers by their tensors; those of the whole model must be known."""
        tensors: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, shape in self.shapes.items():
            if found := _LAYER.search(name):
                tensors.setdefault(int(found[1]), {})[name] = shape
        known = self.number("num_hidden_layers") or len(tensors)
        return tuple(self._layer(tensors[index]) for index in sorted(tensors) if index < known)

    def _layer(self, tensors: Mapping[str, tuple[int, ...]]) -> Layer:
        def size(ending: str) -> int:
            return sum(prod(shape) for name, shape in tensors.items() if name.endswith(ending))

        inner, has_experts = 0.0, any(_EXPERTS.search(name) for name in tensors)
        for name, shape in tensors.items():
            if _DOWN.search(name) and len(shape) > 1:
                share = self.top_k / self.experts if _EXPERTS.search(name) else 1.0
                inner += share * count(name, shape) / self.hidden
        attended = size("o_proj.weight") // self.hidden
        return Layer(
            parameters=sum(count(name, shape) for name, shape in tensors.items()),
            routed=sum(count(name, shape) for name, shape in tensors.items() if _EXPERTS.search(name)),
            experts=self.experts if has_experts else 0,
            top_k=self.top_k if has_experts else 0,
            inner=round(inner),
            attended=attended,
            # Latent attention makes keys of every head from what it caches.
            key=size("k_proj.weight") // self.hidden or attended,
            normalises_queries=any(name.endswith("q_norm.weight") for name in tensors),
        )


def read(folder: Path) -> Model:
    """A model folder by its config and the headers of its weights, or by their index where the weights are not here.

    Raises:
        NotFoundError: neither is there.
        CorruptDataError: a file is broken.
    """
    config = read_json(folder / "config.json")
    width = _width(config)
    size = None
    if (folder / INDEX).is_file() and not list(folder.glob("*.safetensors")):
        metadata = read_json(folder / INDEX).get("metadata")
        size = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(size, int):
        return Model(config, size // width, {}, width)
    shapes = tensor_shapes(weight_files(folder))
    return Model(config, sum(count(name, shape) for name, shape in shapes.items()), shapes, width)


def described(model: str) -> Model:
    """A model by its config alone: of a folder, or of the catalogue.

    transformers makes it without memory for its weights, so sizes are exact for every family that it has.

    Args:
        model: a folder with a config.json, or a name of `catalogue.CONFIGS`.

    Raises:
        NotFoundError: it is neither; names those of the catalogue.
        InvalidInputError: transformers makes no language model of this config.
    """
    if (path := Path(model) / "config.json").is_file():
        return of_config(read_json(path))
    if (config := CONFIGS.get(model.lower().rpartition("/")[2])) is None:
        raise NotFoundError(
            f"--model is {model!r}, no folder with a config.json and none of the models known by name: "
            f"{', '.join(CONFIGS)}; give a folder with the model's config.json"
        )
    return of_config(config)


def of_config(config: Mapping[str, Any]) -> Model:
    """A model by what its config.json says. Raises InvalidInputError where transformers makes none of it."""
    try:
        made, shapes = described_model(config)
    except Exception as error:  # whatever a family's code raises for numbers that do not go together
        kind, cause = config.get("model_type"), f"{type(error).__name__}: {error}"
        raise InvalidInputError(
            f"no language model can be made of this config (model_type {kind!r}): {cause}"
        ) from None
    whole = made.to_dict()
    return Model(whole, sum(prod(shape) for shape in shapes.values()), shapes, _width(config))


def count(name: str, shape: tuple[int, ...]) -> int:
    """Parameters in a tensor. MXFP4 has two in each byte of its blocks, and scales beside them."""
    return 0 if name.endswith("_scales") else prod(shape) * (2 if name.endswith("_blocks") else 1)


def dtype_of(config: Mapping[str, Any]) -> str:
    """What a config.json says of the dtype of its weights; float32, as transformers takes it, where it says nothing."""
    named = text_config(config).get("dtype") or config.get("dtype") or config.get("torch_dtype")
    return str(named or "float32")


def _width(config: Mapping[str, Any]) -> int:
    named = text_config(config).get("dtype") or config.get("dtype") or config.get("torch_dtype")
    return WIDTH.get(str(named), 2)
