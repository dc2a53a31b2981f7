"""Whether weights that were published, or that arrive, fit the model that is served."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from shared.errors import InvalidInputError
from shared.models.folder import tensor_shapes
from shared.weights.rendezvous import TensorSpec

# torch is imported by the functions that need it: vLLM sets what torch reads from the environment when it is imported.
if TYPE_CHECKING:
    import torch

OVERFLOW = (
    "the weights are finite, and log-probs that are computed with them are not: publish weights from before training "
    "diverged"
)


def check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Raises InvalidInputError that lists the first tensors that differ."""
    wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if wrong:
        listed = "; ".join(f"{name}: {found.get(name)}, expected {expected.get(name)}" for name in wrong[:3])
        raise InvalidInputError(
            f"{len(wrong)} tensors differ from the model's in name or shape, first {listed}; "
            "publish weights of the architecture that is served"
        )


def check_weights(expected: dict[str, tuple[int, ...]], files: Sequence[Path]) -> None:
    """Whether published weights fit a model of these shapes, and can be computed with. Reads all of them.

    Raises:
        CorruptDataError: a file is cut off, or is not safetensors.
        InvalidInputError: names or shapes differ, or a tensor holds NaN or infinity.
    """
    check_shapes(expected, tensor_shapes(files))
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            check_finite((f"{name} of {file}", tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118


def check_specs(expected: dict[str, tuple[int, ...]], specs: Sequence[TensorSpec]) -> None:
    """Whether weights that are to arrive fit a model of these shapes.

    Raises:
        InvalidInputError: names or shapes differ, or a dtype does not travel.
    """
    from shared.weights.outgoing import DTYPES

    check_shapes(expected, {spec.name: spec.shape for spec in specs})
    for spec in specs:
        if spec.dtype not in DTYPES:
            raise InvalidInputError(f"{spec.name} is of dtype {spec.dtype!r}; expected one of {', '.join(DTYPES)}")


def check_finite(tensors: Iterable[tuple[str, "torch.Tensor"]]) -> None:
    """Raises InvalidInputError that names the first tensor with NaN or infinity."""
    for name, tensor in tensors:
        if not _finite(tensor):
            raise InvalidInputError(
                f"tensor {name} holds NaN or infinity; publish weights from before training diverged"
            )


def _finite(tensor: "torch.Tensor") -> bool:
    import torch

    if not tensor.is_floating_point():
        return True
    # A sum meets every NaN and infinity, reads the tensor once and writes nothing. It may overflow without either.
    total = tensor.sum(dtype=torch.float32) if tensor.element_size() > 1 else tensor.float().sum()
    return bool(total.isfinite()) or bool(tensor.float().isfinite().all())
