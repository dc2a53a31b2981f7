"""The plan of a batch: rewards to advantages, groups to updates, and updates to the ranks that compute them."""

import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from routershift.algorithms.advantages import (
    DECIDED,
    OVERLONG,
    ZERO_VARIANCE,
    group_advantages,
    overlong_penalty,
    turn_advantages,
    turn_rewards,
)
from routershift.algorithms.aggregation import Totals
from routershift.trajectory import FinishReason
from services.learner.data.batch import (
    Group,
    MicroBatch,
    Sample,
    Weighted,
    flat_micro_batches,
    micro_batches,
    minibatches,
)
from services.learner.data.collate import Update, collate
from services.learner.data.shares import Share
from services.learner.settings import LearnerSettings


class Planner:
    """Decides what is computed, without computing it. Everything random is drawn from (seed, step)."""

    def __init__(
        self, settings: LearnerSettings, max_tokens: int, ranks: int, with_routes: bool, is_flat: bool
    ) -> None:
        """
        Args:
            max_tokens: of the longest response.
            with_routes: whether updates need what the routers did.
            is_flat: whether the model reads a pass as one row.
        """
        self._settings = settings
        self._max_tokens = max_tokens
        self._ranks = ranks
        self._with_routes = with_routes
        self._is_flat = is_flat

    def drop_reason(self, group: Group) -> str | None:
        """Why a group has nothing to teach; None where it has."""
        if not group.weight:
            return DECIDED
        # Of equal rewards, turns may have earned different parts; different ones may be those of what is left out.
        trained = [each for each in self._advantages(group) if each is not None]
        if any(any(each) for each in trained):
            return None
        return ZERO_VARIANCE if trained else OVERLONG

    def trained(self, group: Group) -> list[Sample]:
        """Those that are trained on: all, or those that were not cut."""
        return [sample for sample in group.samples if self._is_trained(sample)]

    def rewards(self, group: Group) -> list[float]:
        """With the penalty for length."""
        longest, buffer = self._max_tokens, self._settings.overlong_buffer_tokens
        return [s.reward + overlong_penalty(s.completion.token_ids.size, longest, buffer) for s in group.samples]

    def plan(self, groups: Sequence[Group], seed: int, step: int, kept: Collection[int] = ()) -> list[list[Update]]:
        """For each rank its part of every update. Args as `divide`."""
        return [self.collate(share, step) for share in self.divide(groups, seed, step, kept)]

    def collate(self, shares: Sequence[Share], step: int) -> list[Update]:
        """The tensors of a rank's part of every update.

        Args:
            step: the version of the weights that the first update changes.
        """
        return [
            Update(
                share.totals,
                tuple(collate(each, self._with_routes, step, keeps=share.keeps) for each in share.passes),
            )
            for share in shares
        ]

    def divide(self, groups: Sequence[Group], seed: int, step: int, kept: Collection[int] = ()) -> list[list[Share]]:
        """For each rank its part of every update, of which only the lengths are looked at.

        Args:
            step: the version of the weights that the first update changes.
            kept: indices of the groups whose tokens are kept for people, as the first pass over them has them.
        """
        settings = self._settings
        places = itertools.count()
        weighted = [self._weighted(group, places, i in kept) for i, group in enumerate(groups)]
        first_pass = min(settings.minibatches, len(groups))
        shares: list[list[Share]] = [[] for _ in range(self._ranks)]
        order = np.random.default_rng((seed, step))
        for i, minibatch in enumerate(minibatches(weighted, order, settings.epochs, settings.minibatches)):
            responses = sum(len(w.advantages) for w in minibatch)
            tokens = sum(w.sample.completion.token_ids.size for w in minibatch)
            totals = Totals(responses, tokens, self._max_tokens)
            passes = self._micro_batches(minibatch)
            for rank, share in enumerate(shares):
                share.append(Share(totals, tuple(passes[rank :: self._ranks]), keeps=i < first_pass))
        return shares

    def _micro_batches(self, minibatch: Sequence[Weighted]) -> list[MicroBatch]:
        divide = flat_micro_batches if self._is_flat else micro_batches
        return divide(minibatch, self._settings.micro_batch_tokens, self._ranks)

    def _weighted(self, group: Group, places: Iterator[int], is_kept: bool) -> list[Weighted]:
        return [
            Weighted(sample, tuple(advantage * group.weight for advantage in each), kept=place if is_kept else -1)
            for sample, each, place in zip(group.samples, self._advantages(group), places, strict=False)
            if each is not None
        ]

    def _advantages(self, group: Group) -> list[list[float] | None]:
        """For each sample: one for all its tokens, or one for each turn; None where it is not trained on."""
        kind = self._settings.advantage or self._settings.preset.advantage
        rewards, compared = self.rewards(group), self._compared(group)
        found: list[list[float] | None] = [None] * len(rewards)
        if not compared:
            return found
        if self._settings.turn_advantages:
            by_turn = [
                turn_rewards(rewards[i], [turn.reward for turn in group.samples[i].trajectory.turns]) for i in compared
            ]
            advantages = [each.tolist() for each in turn_advantages(by_turn, kind)]
        else:
            advantages = [[float(each)] for each in group_advantages([rewards[i] for i in compared], kind)]
        for i, each in zip(compared, advantages, strict=True):
            found[i] = each if self._is_trained(group.samples[i]) else None
        return found

    def _compared(self, group: Group) -> list[int]:
        """The samples whose rewards advantages are relative to."""
        is_dropped = self._settings.overlong == "drop"
        return [i for i, sample in enumerate(group.samples) if not is_dropped or self._is_trained(sample)]

    def _is_trained(self, sample: Sample) -> bool:
        return self._settings.overlong == "train" or sample.completion.finish_reason is not FinishReason.LENGTH
