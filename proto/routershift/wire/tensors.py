"""Arrays on the wire: packed bytes, read without a copy."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routershift.errors import CorruptDataError
from routershift.v1 import trajectory_pb2 as pb

_DTYPES: dict["pb.DType.ValueType", np.dtype[Any]] = {
    pb.D_TYPE_UINT8: np.dtype("u1"),
    pb.D_TYPE_UINT16: np.dtype("<u2"),
    pb.D_TYPE_INT32: np.dtype("<i4"),
    pb.D_TYPE_INT64: np.dtype("<i8"),
    pb.D_TYPE_FLOAT16: np.dtype("<f2"),
    pb.D_TYPE_FLOAT32: np.dtype("<f4"),
}

_DTYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def encode_tensor(array: NDArray[Any]) -> pb.Tensor:
    """Packs an array, row-major and little-endian.

    Raises:
        CorruptDataError: the dtype has no code on the wire.
    """
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _DTYPE_CODES:
        raise CorruptDataError(
            f"tensor dtype {array.dtype} has no wire code; use one of {sorted(map(str, _DTYPE_CODES))}"
        )
    return pb.Tensor(dtype=_DTYPE_CODES[dtype], shape=array.shape, data=array.astype(dtype, copy=False).tobytes())


def decode_tensor(tensor: pb.Tensor, field: str, dtype: str | tuple[str, ...], ndim: int) -> NDArray[Any]:
    """A read-only view of the message's bytes as an array of `ndim` axes whose dtype is one of `dtype`.

    Raises:
        CorruptDataError: another dtype or rank than expected, or a byte count that contradicts the shape.
    """
    expected = (dtype,) if isinstance(dtype, str) else dtype
    found = _DTYPES.get(tensor.dtype)
    if found is None or found.name not in expected:
        raise CorruptDataError(f"{field}.dtype is {found or tensor.dtype}; expected {' or '.join(expected)}")
    shape = tuple(tensor.shape)
    if len(shape) != ndim:
        raise CorruptDataError(f"{field}.shape is {shape}; expected {ndim} axes")
    if len(tensor.data) != prod(shape) * found.itemsize:
        raise CorruptDataError(
            f"{field}.data has {len(tensor.data)} bytes; shape {shape} of {found} needs {prod(shape) * found.itemsize}"
        )
    try:
        return np.frombuffer(tensor.data, dtype=found).reshape(shape)
    except ValueError as error:  # an axis of 0 beside others too long to count
        raise CorruptDataError(f"{field}.shape is {shape}: {error}") from None
