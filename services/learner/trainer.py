"""The trainer: turns groups of scored rollouts into optimizer updates. Knows neither gRPC nor Redis.

With several ranks every method is collective: rank 0 calls it, which tells the others, and they do their part in
`follow`. Rank 0 plans and packs for all; a rank sees only the micro-batches that it computes.

Long because each collective method of rank 0 stands beside the part that the other ranks do.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors
from torch import Tensor

from routershift.routing.hooks import Routing
from routershift.routing.layout import RouterLayout
from services.learner.checkpointing import state
from services.learner.checkpointing.checkpoint import FORMAT, Files, described
from services.learner.checkpointing.held import Sizes
from services.learner.checkpointing.identity import check_identity, identity
from services.learner.checkpointing.sending import Sending
from services.learner.checkpointing.snapshot import Following, Snapshot
from services.learner.data.batch import Group
from services.learner.data.check import Limits, check_group
from services.learner.data.collate import Update, decode, encode
from services.learner.data.part import part_of
from services.learner.data.plan import Planner
from services.learner.data.shares import Share
from services.learner.data.shares import decode as decode_shares
from services.learner.data.shares import encode as encode_shares
from services.learner.distributed.agreement import check_same_model
from services.learner.distributed.ranks import Ranks
from services.learner.loss import Loss
from services.learner.model.optimizer import AdamW, set_learning_rate
from services.learner.model.policy import Policy, Reference
from services.learner.monitoring.diagnostics import summarise
from services.learner.monitoring.kept import kept_tokens
from services.learner.monitoring.report import NON_FINITE, StepReport
from services.learner.settings import LearnerSettings
from services.learner.updates import Updater
from shared.errors import PreconditionError
from shared.payloads.bulk import Bulk
from shared.process.allocator import FreedMemory
from shared.settings import RolloutSettings, RunSettings
from shared.tracing import spans
from shared.tracing.kinds import COLLATE

_BASELINE = "mismatch_baseline"


class Trainer:
    """A policy, its optimizer and the objective.

    Everything random is drawn from (seed, step), so a resumed trainer goes on bit for bit as if it had not stopped.
    """

    step: int  # batches done; the version of the weights is the same number
    layout: RouterLayout | None
    attention: str  # the implementation that `learner.attn_implementation` came to
    sending: Sending | None  # where weights go over the network

    def __init__(
        self,
        settings: LearnerSettings,
        run: RunSettings,
        rollout: RolloutSettings,
        ranks: Ranks | None = None,
        bulk: Bulk | None = None,
        loss: Loss | None = None,
    ) -> None:
        """Loads the model, shards it, and makes its optimizer.

        Args:
            bulk: the payload store, from which each of several ranks reads its own rows.
            loss: takes the place of that of the settings.

        Raises:
            PreconditionError: router shift or replay on a model without known routers.
            InvalidInputError: `learner.mesh` is of another number of ranks, or ranks have different models.
        """
        self._bulk = bulk
        torch.set_num_threads(settings.threads)
        self._freed = FreedMemory()
        self.step = 0
        self._settings = settings
        self._run = run
        self._ranks = ranks or Ranks.open(settings.device, settings.parallel.timeout)
        self._ranks.arrange(settings.mesh.over(self._ranks.size))
        self._identity = identity(settings, run, rollout) if self._ranks.rank == 0 else {}
        self._policy = Policy(settings, run, rollout, self._ranks)
        self._context = self._policy.attention.context
        check_same_model(self._ranks, run.require_model())
        self.layout, self.attention = self._policy.layout, self._policy.attention.name
        self._uses_traces = settings.uses_traces
        self._routing: Routing | None = None
        if self._uses_traces or settings.routing_replay == "r2":
            self._routing = Routing(
                self._policy.model,
                settings.router_shift.layer_aggregation,
                settings.routing_replay,
                settings.router_shift.mismatch_baseline,
            )
            self.layout = self._routing.layout
        layers = len(self.layout.layer_ids) if self.layout else 0
        self._unused = {_BASELINE: torch.full((layers,), torch.nan)} if layers else {}
        self._reference = (
            Reference(self._policy, settings, run, rollout, self._ranks) if settings.kl_coefficient else None
        )
        self._policy.place(settings)
        self._parameters = self._policy.parameters
        self._flops_per_token = self._policy.flops_per_token
        self._optimizer = AdamW(self._parameters.values(), settings.optimizer)
        self._updater = Updater(
            settings, self._ranks, self._policy, self._optimizer, loss or Loss(settings), self._routing, self._reference
        )
        self.sending = (
            Sending(self._policy.parts(), self._ranks, settings, keeps_changes=run.weights_full_every > 0)
            if run.weights_transfer == "broadcast"
            else None
        )
        self._planner = Planner(
            settings, rollout.max_tokens, self._ranks.shape.readers, self._uses_traces, self._policy.attention.is_flat
        )
        self._limits = Limits(
            vocabulary=self._policy.model.config.get_text_config().vocab_size,
            max_tokens=self._policy.model.config.get_text_config().max_position_embeddings,
            layout=self.layout if self._uses_traces else None,
            needs_exact_scores=settings.needs_exact_scores,
            needs_all_layers=settings.needs_all_layers,
        )

    def check(self, group: Group) -> None:
        """Raises InvalidInputError or CorruptDataError, naming the sample, where a group cannot be trained on."""
        check_group(group, self._limits)

    def drop_reason(self, group: Group) -> str | None:
        """Why a group has nothing to teach; None where it has."""
        return self._planner.drop_reason(group)

    def train_step(self, groups: Sequence[Group], kept: Collection[int] = ()) -> StepReport:
        """Takes every update of a batch. Groups must have passed `check`.

        An update whose loss or gradient is not finite is left out. A batch with no other update is skipped: `step`,
        weights and optimizer are then as before.

        Args:
            kept: indices of the groups whose tokens the report has, for people to look at.
        """
        with spans.span(COLLATE):
            own = self._distributed(self._planner.divide(groups, self._run.seed, self.step, kept))
        trained = [sample for group in groups for sample in self._planner.trained(group)]
        read = self._settings.epochs * sum(sample.input_tokens for sample in trained)
        parts, taken = self._train(own)
        places = [(g, s) for g, group in enumerate(groups) for s in range(len(group.samples))]
        return StepReport(
            self.step,
            skipped=None if taken else NON_FINITE,
            diagnostics=summarise(parts, self._settings.router_shift.gamma_min),
            tokens=sum(sample.completion.token_ids.size for sample in trained),
            flops=read * self._flops_per_token,
            kept={places[place]: found for place, found in kept_tokens(parts).items()},
        )

    def export_weights(self, folder: Path) -> None:
        """Writes safetensors with the tensor names and the dtype of the model folder."""
        self._tell("export", str(folder))
        self._policy.export(folder)

    def take_version(self) -> Sizes:
        """Makes the weights as they are now the version that `sending` sends; the bytes of it."""
        self._tell("take")
        return self._take()

    def snapshot(self, meta: Mapping[str, Any]) -> Snapshot:
        """All that `load` needs to go on bit for bit, as it is now; one at a time. `meta` is given back by `load`.

        Training goes on while it is written, unless `learner.checkpoints.background` is off.
        """
        self._tell("snapshot")
        return self._snapshot(meta)

    def load(self, folder: Path) -> dict[str, Any]:
        """Goes on from what a snapshot wrote, on however many ranks, and returns its `meta`.

        Raises:
            InvalidInputError: the checkpoint is of another model, or of a run that differs in what `identity` names.
        """
        check_identity(self._identity, state.about(folder)["identity"], folder)
        self._tell("load", str(folder))
        return self._load(folder)

    def described(self, folder: Path, names: Sequence[str]) -> Files:
        """Size and SHA-256 of files in a folder that all ranks see, each of which reads its share of them."""
        self._tell("describe", str(folder), *names)
        return self._described(folder, names)

    def close(self) -> None:
        """Lets the other ranks end."""
        if self.sending is not None:
            self.sending.close()
        self._tell("stop")
        self._ranks.close()

    def follow(self) -> None:
        """Runs a rank other than 0: does its part of each command of rank 0, until that closes.

        Raises:
            CorruptDataError, UnavailableError: its rows are not to be had from the payload store.
            UnavailableError: rank 0 is gone.
        """
        writing, sending = Following(), Following()
        if self.sending is not None:
            sending.begin(self.sending)
        parts: dict[str, Callable[..., object]] = {
            "train": lambda: self._train(self._parts(decode(self._ranks.scatter()))),
            "fetch": lambda step: self._train(self._fetched(self._ranks.scatter(), int(step))),
            "export": lambda folder: self._policy.export(Path(folder)),
            "take": self._take,
            "snapshot": lambda: writing.begin(self._snapshot({})),
            "load": lambda folder: self._load(Path(folder)),
            "describe": lambda folder, *names: self._described(Path(folder), names),
        }
        while (command := json.loads(self._ranks.command()))[0] != "stop":
            parts[command[0]](*command[1:])
        writing.end()
        sending.end()
        self._ranks.close()

    @property
    def has_ranks(self) -> bool:
        """Whether rows are divided, so that rank 0 need not keep arrays that every rank can read."""
        return self._ranks.size > 1

    @property
    def gpus(self) -> int:
        """GPUs that all ranks compute on."""
        return self._ranks.size if self._ranks.device.type == "cuda" else 0

    def _distributed(self, shares: Sequence[Sequence[Share]]) -> list[Update]:
        """Gives every rank its part of the updates, and returns that of rank 0."""
        if self._ranks.size == 1:
            return self._planner.collate(shares[0], self.step)
        if any(each.sample.reference for share in shares for part in share for each in part.samples):
            self._tell("fetch", str(self.step))
            return self._fetched(self._scatter([encode_shares(share) for share in shares]), self.step)
        self._tell("train")
        found = self._scatter([encode(self._planner.collate(share, self.step)) for share in shares])
        return self._parts(decode(found))

    def _scatter(self, payloads: Sequence[bytes]) -> bytes:
        """Gives each rank the payload of its group, and returns that of rank 0."""
        reader = self._ranks.shape.reader
        return self._ranks.scatter([payloads[reader(rank)] for rank in range(self._ranks.size)])

    def _fetched(self, payload: bytes, step: int) -> list[Update]:
        """The rows of this rank, read from the payload store. Args: step: that rank 0 plans for."""
        if self._bulk is None:
            raise PreconditionError("rows are in a payload store, and this rank has none; set [payloads] for all ranks")
        return self._parts(self._planner.collate(decode_shares(payload, self._bulk.read), step))

    def _parts(self, updates: Sequence[Update]) -> list[Update]:
        """What this rank computes of the updates of its group."""
        if (context := self._context) is None:
            return list(updates)
        return [
            replace(each, batches=tuple(part_of(batch, context.rank, context.size) for batch in each.batches))
            for each in updates
        ]

    def _tell(self, *command: str) -> None:
        self._ranks.command(json.dumps(command).encode())

    def _train(self, updates: Sequence[Update]) -> tuple[list[dict[str, Tensor]], bool]:
        """What every rank found, on rank 0; and whether any update was taken."""
        set_learning_rate(self._optimizer, self._settings.optimizer, self.step, self._run.steps)
        found, is_taken = self._updater.take(updates, self.step)
        self.step += is_taken
        if self._routing:
            self._routing.baseline.close_batch(self._ranks.sum)
        self._freed.after_step()  # else a process may hold more with every step
        return [decode_tensors(part) for part in self._ranks.gather(encode_tensors(found))], is_taken

    def _take(self) -> Sizes:
        if self.sending is None:
            raise PreconditionError("weights are sent where run.weights_transfer is broadcast; set it for all ranks")
        return self.sending.take()

    def _snapshot(self, meta: Mapping[str, Any]) -> Snapshot:
        about = {"format": FORMAT, "step": self.step, "identity": self._identity, "meta": dict(meta)}
        copies = self._settings.checkpoints.background
        return Snapshot(self._ranks, self._parameters, self._optimizer, self._baseline(), about, copies)

    def _load(self, folder: Path) -> dict[str, Any]:
        baseline = self._baseline()
        about = state.load(folder, self._ranks, self._parameters, self._optimizer, baseline)
        if self._routing is None:
            self._unused = baseline
        else:
            self._routing.baseline.medians = baseline[_BASELINE]
        self.step = int(about["step"])
        meta: dict[str, Any] = about["meta"]
        return meta

    def _described(self, folder: Path, names: Sequence[str]) -> Files:
        """All of them on rank 0, nothing on the others."""
        own = described(folder, names[self._ranks.rank :: self._ranks.size])
        found: Files = {}
        for part in self._ranks.gather(json.dumps(own).encode()):
            found |= json.loads(part)
        return found

    def _baseline(self) -> dict[str, Tensor]:
        """In every checkpoint of a model with routers, so that a run may go on with router shift or without."""
        return self._unused if self._routing is None else {_BASELINE: self._routing.baseline.medians}
