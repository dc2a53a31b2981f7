"""The tensors that the model of a folder has: the same for the learner and every engine.

torch and transformers are imported by the functions that need them: vLLM sets what torch reads from the environment
when it is imported.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from shared.errors import InvalidInputError, PreconditionError
from shared.models.folder import read_json, tensor_shapes, weight_files
from shared.models.loading import empty_model, load_config

log = logging.getLogger(__name__)

_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
_LISTED = 3  # names in a message; the others are counted


def model_tensors(model: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a model folder that the model made of it has: those that its published weights have.

    What the folder has beside them is ignored: buffers that are computed, a head that repeats the embedding it is tied
    to, tensors of parts that are not used. One line of the log names them. Where transformers does not know the
    architecture, and where the weights are quantised, these are the tensors of the folder.

    Raises:
        NotFoundError: a file is missing.
        CorruptDataError: a file is damaged.
        InvalidInputError: a tensor that the model has is missing, of another shape, or of no float dtype; or a tied
            head differs from its embedding.
        PreconditionError: the folder wants its own code run.
    """
    files = weight_files(model)
    found = tensor_shapes(files)
    loaded = None if "quantization_config" in read_json(model / "config.json") else _of_config(model)
    if loaded is None:
        return found
    expected, tied = loaded
    where = f"model folder {model}"
    if missing := sorted(expected.keys() - found.keys()):
        raise InvalidInputError(
            f"{where} lacks {_some(missing)}, which its config.json says the model has; it would start at random: copy "
            "the whole folder, or mend config.json"
        )
    if wrong := [name for name in sorted(expected) if found[name] != expected[name]]:
        name = wrong[0]
        raise InvalidInputError(
            f"{where} has {_some(wrong)} of another shape than config.json says; {name} is {found[name]}, expected "
            f"{expected[name]}"
        )
    dtypes = _dtypes(files)
    if unusable := [name for name in sorted(expected) if dtypes[name] not in _FLOATS]:
        raise InvalidInputError(
            f"{where} has {_some(unusable)} as {dtypes[unusable[0]]}; expected float tensors: convert the model to "
            "bfloat16"
        )
    for target, source in tied.items():
        if target in found and source in found:
            _check_tied(where, files, target, source)
    if ignored := sorted(found.keys() - expected.keys()):
        log.info("%s: ignored %d tensors that the model does not have: %s", where, len(ignored), _some(ignored))
    return expected


def require_float(model: Path) -> None:
    """Raises PreconditionError where the folder's weights are quantised: they are neither trained nor published."""
    quantised = read_json(model / "config.json").get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise PreconditionError(
            f"model folder {model} has a quantization_config (quant_method {method!r}); only float weights are trained "
            "and sampled from here: convert the model to bfloat16"
        )


def _of_config(model: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]] | None:
    """Shapes by name that a model of this config would save, and what is tied to what; None where it cannot be made."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    try:
        config = load_config(model)
        with torch.device("meta"):
            empty = empty_model(config, model)
    except PreconditionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("model folder %s: its tensors are taken as they are, for transformers cannot say: %s", model, error)
        return None
    tied = dict(empty.all_tied_weights_keys)
    saved = revert_weight_conversion(empty, empty.state_dict())
    return {name: tuple(tensor.shape) for name, tensor in saved.items() if name not in tied}, tied


def _check_tied(where: str, files: Sequence[Path], target: str, source: str) -> None:
    import torch

    read: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            read |= {name: tensors.get_tensor(name) for name in {target, source} & set(tensors.keys())}
    if not torch.equal(read[target], read[source]):
        raise InvalidInputError(
            f"{where} has a {target} that differs from {source}, and config.json ties them; set tie_word_embeddings to "
            f"false there, or take {target} out"
        )


def _dtypes(files: Sequence[Path]) -> dict[str, str]:
    """The dtype of each tensor by name, as safetensors calls it. The files are whole."""
    found: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="np") as tensors:
            found |= {name: str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
    return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
