"""The numbers that say how a batch went."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.learner.batch import Batch
from services.learner.objectives import ObjectiveResult, PolicyBatch
from services.learner.router_shift import Shift


@dataclass
class Diagnostics:
    """Collects every forward pass of a batch. One number a response token is kept until `result`.

    Args:
        gamma_min: floor of gamma.
        step: batches done before this one: the version of the weights that its first update starts from.
    """

    gamma_min: float
    step: int
    _losses: list[Tensor] = field(default_factory=list)
    _norms: list[Tensor] = field(default_factory=list)
    _layers: Tensor | None = None
    _tokens: dict[str, list[Tensor]] = field(default_factory=dict)

    def add_update(self, grad_norm: Tensor) -> None:
        self._norms.append(grad_norm)

    def add_forward(
        self,
        batch: Batch,
        policy: PolicyBatch,
        result: ObjectiveResult,
        entropy: Tensor,
        shift: Shift | None,
        is_first_update: bool,
    ) -> None:
        """Args: entropy: [R] nats. is_first_update: the weights are still those of version `step`."""
        mask = batch.mask
        self._losses.append(result.loss.detach())
        lag = self.step - batch.versions[mask]
        self._add("log_ratio", (policy.logprobs.detach() - policy.behaviour_logprobs)[mask])
        self._add("clipped", result.clipped[mask].float())
        self._add("entropy", entropy)
        self._add("lag", lag.float())
        if shift is not None and batch.routes is not None:
            self._add("gamma", shift.log_gamma.exp())
            self._add("missing", batch.routes.missing.float())
            self._add("unmoved", (lag == 0) & ~batch.routes.missing & is_first_update)
            self._layers = shift.layers if self._layers is None else self._layers + shift.layers

    def result(self) -> dict[str, float]:
        """By name. gamma is before its floor; `gamma_at_lag_zero` is absent where no token has lag 0."""
        tokens = {name: torch.cat(parts) for name, parts in self._tokens.items()}
        log_ratio = tokens["log_ratio"]
        numbers = {
            "loss": torch.cat(self._losses).mean(),
            "grad_norm": torch.stack(self._norms).mean(),
            "tokens": torch.tensor(log_ratio.numel()),
            "clip_fraction": tokens["clipped"].mean(),
            "entropy": tokens["entropy"].mean(),
            "ratio_mean": log_ratio.exp().mean(),
            "ratio_max": log_ratio.exp().max(),
            # KL(pi_old || pi_theta), estimated without bias and never below 0 on samples of pi_old.
            "kl": (log_ratio.exp() - 1 - log_ratio).mean(),
            "token_lag_mean": tokens["lag"].mean(),
            "token_lag_max": tokens["lag"].max(),
        }
        if self._layers is not None:
            gamma, missing, unmoved = tokens["gamma"], tokens["missing"], tokens["unmoved"]
            numbers |= {
                "gamma_mean": gamma.mean(),
                "gamma_p10": torch.tensor(np.quantile(gamma.cpu().numpy(), 0.1)),  # torch.quantile ends at 2**24 tokens
                "gamma_floor_fraction": (gamma < self.gamma_min).float().mean(),
                "missing_route_fraction": missing.mean(),
            }
            if unmoved.any():
                numbers["gamma_at_lag_zero"] = gamma[unmoved].mean()
            known = (1 - missing).sum().clamp(min=1)
            numbers |= {f"router_shift_layer_{i}": total / known for i, total in enumerate(self._layers)}
        return {name: float(value) for name, value in numbers.items()}

    def _add(self, name: str, values: Tensor) -> None:
        self._tokens.setdefault(name, []).append(values)
