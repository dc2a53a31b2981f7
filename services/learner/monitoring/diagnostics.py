"""The numbers that say how a batch went."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from routershift.algorithms.objectives.base import MAX_EXPONENT
from routershift.routing.expert_load import balance
from services.learner.data.collate import Batch
from services.learner.loss import Forward, LossParts


class Diagnostics:
    """Collects every forward pass of this rank. One number a response token is kept until the end of the batch.

    Args:
        step: batches done before this one: the version of the weights that its first update starts from.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._updates: dict[str, list[Tensor]] = {"loss": [], "grad_norm": []}
        self._tokens: dict[str, list[Tensor]] = {}
        self._layers: dict[str, Tensor] = {}  # sums over tokens, by layer

    def add_update(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Both of all ranks together."""
        self._updates["loss"].append(loss.detach())
        self._updates["grad_norm"].append(grad_norm.detach())

    def add_forward(self, batch: Batch, forward: Forward, parts: LossParts, is_unmoved: bool) -> None:
        """`is_unmoved`: the weights are still those of version `step`."""
        if batch.filler:
            return
        mask, shift, missing = batch.mask, forward.shift, batch.missing
        lag = self._step - batch.versions
        self._add("log_ratio", (forward.logprobs.detach() - batch.behaviour_logprobs)[mask])
        self._add("clipped", parts.result.clipped[mask].float())
        self._add("dropped", (~parts.correction.kept)[mask].float())
        self._add("weight", parts.correction.weights[mask])
        self._add("entropy", forward.entropy.detach()[mask])
        self._add("lag", lag.float())
        if parts.reference_kl is not None:
            self._add("reference_kl", parts.reference_kl.detach()[mask])
        if missing is not None and forward.use is not None:
            self._add("missing", missing.float())
            self._add_layers("loads", forward.use.loads)
            self._add_layers("overlaps", forward.use.overlaps)
        if missing is not None and shift is not None:
            self._add("gamma", shift.log_gamma.exp())
            if is_unmoved:
                self._add("gamma_at_lag_zero", shift.measured[(lag == 0) & ~missing].exp())
            self._add_layers("shifts", shift.layers)

    def tensors(self) -> dict[str, Tensor]:
        """What `summarise` wants of this rank, on the CPU."""
        found = {name: torch.stack(values) for name, values in self._updates.items()}
        found |= {f"token/{name}": torch.cat(parts) for name, parts in self._tokens.items()}
        found |= {f"layers/{name}": sums for name, sums in self._layers.items()}
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _add(self, name: str, values: Tensor) -> None:
        self._tokens.setdefault(name, []).append(values)

    def _add_layers(self, name: str, sums: Tensor) -> None:
        self._layers[name] = self._layers[name] + sums if name in self._layers else sums


def summarise(ranks: Sequence[Mapping[str, Tensor]], gamma_min: float) -> dict[str, float]:
    """By name, over all ranks. gamma is before its lower bound. Ratios are bounded by exp(`MAX_EXPONENT`).

    `loss` and `grad_norm` are means over the updates that were taken, not finite where none was; `skipped_updates`
    counts the others.

    `gamma_at_lag_zero` is absent where no token has lag 0. It is gamma without the mismatch baseline: where the
    weights are the same, all that it differs from 1 by is what the two engines disagree on.
    """
    # A rank whose passes were all fillers has no tokens.
    parts = [part for part in ranks if "token/log_ratio" in part]
    names = [name.removeprefix("token/") for name in parts[0] if name.startswith("token/")]
    tokens = {name: torch.cat([part[f"token/{name}"] for part in parts]) for name in names}
    # Log-probs may be anything finite; float64 and a bound on the exponent keep every number here finite as well.
    log_ratio = tokens["log_ratio"].double().clamp(max=MAX_EXPONENT)
    ratio = log_ratio.exp()
    updates = torch.stack([ranks[0]["loss"], ranks[0]["grad_norm"]]).double()
    taken = updates[:, updates.isfinite().all(dim=0)]
    loss, grad_norm = (taken if taken.numel() else updates).mean(dim=1)
    numbers = {
        "loss": loss,
        "grad_norm": grad_norm,
        "skipped_updates": torch.tensor(updates.shape[1] - taken.shape[1]),
        "tokens": torch.tensor(log_ratio.numel()),
        "clip_fraction": tokens["clipped"].mean(),
        "dropped_fraction": tokens["dropped"].mean(),
        "correction_weight_mean": tokens["weight"].mean(),
        "entropy": tokens["entropy"].mean(),
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        # KL(pi_old || pi_theta), estimated without bias and never below 0 on samples of pi_old.
        "kl": (ratio - 1 - log_ratio).mean(),
        "token_lag_mean": tokens["lag"].mean(),
        "token_lag_max": tokens["lag"].max(),
    }
    if "reference_kl" in tokens:
        numbers["reference_kl"] = tokens["reference_kl"].double().mean()
    if "gamma" in tokens:
        gamma = tokens["gamma"]
        numbers |= {
            "gamma_mean": gamma.mean(),
            "gamma_p10": _quantile(gamma, 0.1),
            "gamma_floor_fraction": (gamma < gamma_min).float().mean(),
        }
        if (unmoved := tokens.get("gamma_at_lag_zero")) is not None and unmoved.numel():
            numbers |= {"gamma_at_lag_zero": unmoved.mean(), "gamma_at_lag_zero_p10": _quantile(unmoved, 0.1)}
    if "missing" in tokens:
        numbers["missing_route_fraction"] = tokens["missing"].mean()
        known = (1 - tokens["missing"]).sum().clamp(min=1)
        for name, values in _by_layer(parts, known).items():
            numbers |= {f"{name}_layer_{i}": value for i, value in enumerate(values)}
    return {name: float(value) for name, value in numbers.items()}


def _by_layer(parts: Sequence[Mapping[str, Tensor]], known: Tensor) -> dict[str, Tensor]:
    """[L] each; `known` are the tokens whose routes are known."""
    names = [name for name in parts[0] if name.startswith("layers/")]
    sums = {name.removeprefix("layers/"): torch.stack([part[name] for part in parts]).sum(dim=0) for name in names}
    busiest, entropy = balance(sums["loads"])
    found = {"expert_overlap": sums["overlaps"] / known, "expert_load_max": busiest, "expert_load_entropy": entropy}
    return found | ({"router_shift": sums["shifts"] / known} if "shifts" in sums else {})


def _quantile(values: Tensor, q: float) -> Tensor:
    # torch.quantile ends at 2**24 values.
    return torch.tensor(np.quantile(values.numpy(), q))
