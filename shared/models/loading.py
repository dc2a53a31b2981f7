"""The one way from a model folder to what transformers makes of it: no code of the folder, no network, no pickles.

transformers is imported by the functions that need it: images without torch read settings too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from shared.errors import PreconditionError
from shared.models.folder import read_json

# Hold it for each `from_pretrained`. While transformers 5 loads a model, it turns the tying of weights off for all of
# them, and then puts back what it found (`transformers.initialization.no_tie_weights`, 5.19). Where two threads load at
# once, the last to end puts back nothing, and until the process ends no model ties its head to its embedding.
LOADING = Lock()

# Where it is left out, transformers asks on the terminal whether to run the code of the folder.
_TRUST = "trust_remote_code"
_OPTIONS: dict[str, Any] = {_TRUST: False, "local_files_only": True}


def load_config(folder: Path) -> Any:
    """The config of a model folder, a `PreTrainedConfig`.

    Raises:
        PreconditionError: the folder wants its own code run, or a kernel from the Hugging Face Hub.
        OSError, ValueError, KeyError, TypeError, AttributeError: transformers makes nothing of it.
    """
    from transformers import AutoConfig

    _refuse_kernels(folder)
    with _refused(folder):
        return AutoConfig.from_pretrained(folder, **_OPTIONS)


def load_model(factory: Any, folder: Path, **options: Any) -> Any:
    """The model of a folder in the class that `factory` chooses, such as `AutoModelForCausalLM`.

    Args:
        options: of `from_pretrained`.

    Raises:
        PreconditionError: the folder wants its own code run, or a kernel from the Hugging Face Hub.
        OSError, ValueError, RuntimeError, SafetensorError: transformers makes nothing of it.
    """
    _refuse_kernels(folder)
    with _refused(folder), LOADING:
        return factory.from_pretrained(folder, use_safetensors=True, **_OPTIONS, **options)


def model_of(model_class: Any, config: Any, tensors: Mapping[str, Any], **options: Any) -> Any:
    """A model of a class of transformers with these weights; reads no folder. `options` are of `from_pretrained`."""
    with LOADING:
        return model_class.from_pretrained(None, config=config, state_dict=tensors, **_OPTIONS, **options)


def empty_model(config: Any, folder: Path, **options: Any) -> Any:
    """A language model of this config with random weights, on torch's current device. Errors: see `load_model`."""
    from transformers import AutoModelForCausalLM

    with _refused(folder), LOADING:
        return AutoModelForCausalLM.from_config(config, **{_TRUST: False}, **options)


def described_model(config: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A language model by the content of a config.json alone, without memory for its weights.

    Returns:
        Its config, a `PreTrainedConfig`, and the shape of each tensor by name; tied weights are one tensor.

    Raises:
        Whatever the code of a family raises for numbers that do not go together.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # What names code of the folder, or kernels for weights as they are stored, says nothing of sizes.
    own = {key: value for key, value in config.items() if key not in ("auto_map", "quantization_config")}
    made = AutoConfig.for_model(**own)
    with LOADING, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made, **{_TRUST: False})
    tensors = {id(tensor): (name, tuple(tensor.shape)) for name, tensor in model.state_dict(keep_vars=True).items()}
    return made, dict(tensors.values())


def load_tokenizer_files(folder: Path) -> Any:
    """The tokenizer of a model folder as transformers makes it; errors are those of `load_config` and of tokenizers."""
    from transformers import AutoTokenizer

    with _refused(folder):
        return AutoTokenizer.from_pretrained(folder, **_OPTIONS)


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """Says in our own words that a folder wants its code run: transformers names a parameter that nobody can set."""
    try:
        yield
    except PreconditionError:
        raise
    except Exception as error:
        if _TRUST not in str(error):
            raise
        raise PreconditionError(
            f"model folder {folder} asks to run code of its own ({_code_of(folder)}), and no code of a model folder is "
            "run here; use a model whose architecture and tokenizer are part of transformers, or take auto_map out "
            "where they are"
        ) from error


def _code_of(folder: Path) -> str:
    """Which of its files name code."""
    names = ("config.json", "tokenizer_config.json")
    found = [
        f"auto_map in {name}" for name in names if (folder / name).is_file() and "auto_map" in read_json(folder / name)
    ]
    if (folder / "custom_generate").is_dir():
        found.append("custom_generate")
    return ", ".join(found) or "as transformers says"


def _refuse_kernels(folder: Path) -> None:
    """Raises PreconditionError for attention that transformers would fetch from the Hub, which is code too."""
    for key, value in _items(read_json(folder / "config.json") if (folder / "config.json").is_file() else {}):
        if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
            raise PreconditionError(
                f"{folder / 'config.json'} has {key} {value!r}, which is code on the Hugging Face Hub, and no code of "
                "a model is run here; take it out"
            )


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of an object of JSON, those of objects in it too."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key, each
            yield from _items(each)
