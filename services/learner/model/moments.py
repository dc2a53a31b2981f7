"""How AdamW's moments are held: in float32, in bfloat16, or in one byte each with a scale for every block of 256."""

from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Literal

import torch
from torch import Size, Tensor

from services.learner.model.settings import BLOCK

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALE = "_scale"  # after the name of a moment in bytes, that of its scales
_LEAST_NUMBER = 4096  # of values in a parameter whose moments are worth bytes: torchao's rule

Form = Literal["float32", "bfloat16", "uint8"]
Layout = dict[str, tuple[Size, torch.dtype]]
"""Tensors that hold the moments of a parameter: shape and dtype by name."""


def layout(shape: Size, form: Form) -> Layout:
    """The tensors for a parameter of this shape.

    All have its first dimension, over which ranks divide it, so that blocks belong to rows and any mesh can hold them.
    A parameter whose rows are not whole blocks, or that is small, has moments in float32 in place of bytes.
    """
    if form != "uint8" or not _takes_blocks(shape):
        dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
        return dict.fromkeys(MOMENTS, (shape, dtype))
    scales = Size((shape[0], prod(shape[1:]) // BLOCK))
    return dict.fromkeys(MOMENTS, (shape, torch.uint8)) | {name + SCALE: (scales, torch.float32) for name in MOMENTS}


def read(held: Mapping[str, Tensor], name: str) -> Tensor:
    """A moment in float32: the tensor that is held itself, where it is in float32.

    Args:
        held: flat tensors [n] of one parameter or of whole blocks of it, with scales [n / 256].
    """
    moment = held[name]
    if moment.dtype != torch.uint8:
        return moment.float()
    from torchao.optim.quant_utils import dequant_with_qmap

    found: Tensor = dequant_with_qmap(moment, _codebook(name, moment.device), held[name + SCALE])
    return found


def write(held: Mapping[str, Tensor], name: str, moment: Tensor) -> None:
    """Rounds a moment [n] float32 to what is held. Args: held: as in `read`."""
    if held[name].dtype != torch.uint8:
        if held[name] is not moment:
            held[name].copy_(moment)
        return
    from torchao.optim.quant_utils import quantize_8bit_with_qmap, scale_tensor

    scaled, scale = scale_tensor(moment, BLOCK)
    held[name].copy_(quantize_8bit_with_qmap(scaled, _codebook(name, moment.device)))
    held[name + SCALE].copy_(scale)


def _takes_blocks(shape: Size) -> bool:
    return prod(shape) >= _LEAST_NUMBER and prod(shape[1:]) % BLOCK == 0


@cache
def _codebook(name: str, device: torch.device) -> Tensor:
    """[256] float32, what the codes of a moment stand for; the second has no sign (arXiv 1511.04561)."""
    from torchao.optim.quant_utils import create_dynamic_map

    return torch.tensor(create_dynamic_map(signed=name == MOMENTS[0]), device=device)
