"""An update of AdamW: its seconds and the bytes that it holds and takes, with moments in each form and place.

What is compared runs in turns over the same number of values, a parameter of the size of a layer's experts after the
other. Gradients are there before the clock starts. On a CPU what is called host memory is the device's own.
"""

import argparse
import sys
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from services.learner.model.optimizer import AdamW
from services.learner.model.settings import OptimizerSettings
from tests.bench.memory import peak_bytes
from tests.bench.timing import interleaved

PLAIN = "float32"
VARIANTS: dict[str, dict[str, str]] = {
    PLAIN: {},
    "bfloat16": {"moments": "bfloat16"},
    "moments in host memory": {"offload": "moments"},
    "masters in host memory": {"offload": "masters"},
    "uint8": {"moments": "uint8"},
}
_ROW = 2048
QUICK = {"values": 1 << 20, "rounds": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--values", type=int, default=1 << 25, help="in all parameters, about; default: 2^25")
    parser.add_argument("--parameters", type=int, default=4, help="that have them; default: 4")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--fused", action="store_true", help="the fused kernel")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Variants that need torchao are left out where it is not installed."""
    device = torch.device(arguments.device)
    rows = max(1, arguments.values // (_ROW * arguments.parameters))
    values = rows * _ROW * arguments.parameters
    optimizers = {
        name: _optimizer(changes, rows, arguments, device)
        for name, changes in VARIANTS.items()
        if changes.get("moments") != "uint8" or find_spec("torchao")
    }
    taken = {name: peak_bytes(each.step, device, 0) for name, each in optimizers.items() if device.type != "cuda"}
    for name, each in optimizers.items():
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            taken[name] = peak_bytes(each.step, device, 0) - before
    settle = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    timings = interleaved({name: each.step for name, each in optimizers.items()}, arguments.rounds, settle=settle)
    found = {}
    for name, each in optimizers.items():
        ratio = timings.ratio(PLAIN, name)  # above 1 where the plain one is faster: seconds over its seconds
        found[name] = {
            "seconds": timings.spread(name).median,
            "seconds_ratio_to_float32": ratio.median,
            "seconds_ratio_spread": (ratio.min, ratio.max),
            "update_bytes": taken[name],
            "state_bytes_per_value": sum(t.nbytes for state in each.state.values() for t in state.values()) / values,
        }
        sys.stderr.write(f"{name}: {taken[name] / 2**20:.0f} MiB for itself, {ratio.median:.2f} times float32\n")
    cpu = timings.cpu(PLAIN, "value", values)
    return {"device": str(device), "values": values, "fused": arguments.fused, "variants": found, "cpu": cpu}


def _optimizer(changes: dict[str, str], rows: int, arguments: argparse.Namespace, device: torch.device) -> AdamW:
    dtype = torch.bfloat16 if changes.get("offload") == "masters" else torch.float32
    parameters = []
    for _ in range(arguments.parameters):
        parameter = nn.Parameter(torch.randn(rows, _ROW, device=device).to(dtype))
        parameter.grad_dtype = torch.float32
        parameter.grad = torch.randn(rows, _ROW, device=device)
        parameters.append(parameter)
    optimizer = AdamW(parameters, OptimizerSettings.model_validate({**changes, "fused": arguments.fused}))
    optimizer.step()
    return optimizer
