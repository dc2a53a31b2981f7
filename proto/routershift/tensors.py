"""What the library demands of tensors, each by the name of its argument."""

from collections.abc import Sequence

from torch import Tensor

from routershift.errors import InvalidInputError


def require_tensor(name: str, tensor: object) -> None:
    """Raises InvalidInputError for what is no tensor."""
    if not isinstance(tensor, Tensor):
        raise InvalidInputError(f"{name} is of type {type(tensor).__name__}; expected a tensor")


def require_shape(name: str, tensor: Tensor, shape: Sequence[int], letters: str) -> None:
    """Raises InvalidInputError for a tensor of another shape, which `letters` names, such as [B, T]."""
    require_tensor(name, tensor)
    if tuple(tensor.shape) != tuple(shape):
        raise InvalidInputError(f"{name} has shape {list(tensor.shape)}; expected {letters} = {list(shape)}")


def require_float(name: str, tensor: Tensor) -> None:
    """Raises InvalidInputError for what is no tensor of a float type."""
    require_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise InvalidInputError(f"{name} is of type {tensor.dtype}; expected a float type")


def require_finite(name: str, values: Tensor) -> None:
    """Raises InvalidInputError where one of the values that count is NaN or infinite."""
    if not bool(values.isfinite().all()):
        raise InvalidInputError(f"{name} is not finite on every response token; look at where it was computed")
