"""The plan of a batch: rewards to advantages, groups to updates, and updates to the ranks that compute them."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from routershift.algorithms.advantages import (
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
    Weighted,
    flat_micro_batches,
    micro_batches,
    minibatches,
)
from services.learner.data.collate import Update, collate
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
        # Of equal rewards, turns may have earned different parts; of different ones, only a cut response may have its.
        return None if any(any(each) for each in self._advantages(group)) else ZERO_VARIANCE

    def rewards(self, group: Group) -> list[float]:
        """With the penalty for length."""
        longest, buffer = self._max_tokens, self._settings.overlong_buffer_tokens
        return [s.reward + overlong_penalty(s.completion.token_ids.size, longest, buffer) for s in group.samples]

    def plan(self, groups: Sequence[Group], seed: int, step: int, kept: Collection[int] = ()) -> list[list[Update]]:
        """For each rank its part of every update.

        Args:
            step: the version of the weights that the first update changes.
            kept: indices of the groups whose tokens are kept for people, as the first pass over them has them.
        """
        settings = self._settings
        weighted = [self._weighted(group) for group in groups]
        places = itertools.count()
        for i, group in enumerate(weighted):
            numbers = [next(places) for _ in group]
            if i in kept:
                weighted[i] = [replace(w, kept=n) for w, n in zip(group, numbers, strict=True)]
        first_pass = min(settings.minibatches, len(groups))
        shares: list[list[Update]] = [[] for _ in range(self._ranks)]
        order = np.random.default_rng((seed, step))
        for i, minibatch in enumerate(minibatches(weighted, order, settings.epochs, settings.minibatches)):
            responses = sum(len(w.advantages) for w in minibatch)
            tokens = sum(w.sample.completion.token_ids.size for w in minibatch)
            totals = Totals(responses, tokens, self._max_tokens)
            passes = [
                collate(micro_batch, self._with_routes, step, keeps=i < first_pass)
                for micro_batch in self._micro_batches(minibatch)
            ]
            for rank, share in enumerate(shares):
                share.append(Update(totals, tuple(passes[rank :: self._ranks])))
        return shares

    def _micro_batches(self, minibatch: Sequence[Weighted]) -> list[MicroBatch]:
        divide = flat_micro_batches if self._is_flat else micro_batches
        return divide(minibatch, self._settings.micro_batch_tokens, self._ranks)

    def _weighted(self, group: Group) -> list[Weighted]:
        return [
            Weighted(sample, tuple(each)) for sample, each in zip(group.samples, self._advantages(group), strict=True)
        ]

    def _advantages(self, group: Group) -> list[list[float]]:
        """One for all tokens of a sample, or one for each turn; 0 where it is cut, and that teaches nothing."""
        rule = self._settings.overlong
        is_left_out = [
            rule != "train" and sample.completion.finish_reason is FinishReason.LENGTH for sample in group.samples
        ]
        judged = [
            sample
            for sample, left_out in zip(group.samples, is_left_out, strict=True)
            if not (left_out and rule == "drop")
        ]
        found = iter(self._judged(replace(group, samples=tuple(judged))) if judged else ())
        made = [[0.0] if left_out and rule == "drop" else next(found) for left_out in is_left_out]
        return [[0.0] * len(each) if left_out else each for each, left_out in zip(made, is_left_out, strict=True)]

    def _judged(self, group: Group) -> list[list[float]]:
        """By their rewards alone."""
        kind = self._settings.advantage or self._settings.preset.advantage
        rewards = self.rewards(group)
        if not self._settings.turn_advantages:
            return [[float(advantage)] for advantage in group_advantages(rewards, kind)]
        by_turn = [
            turn_rewards(reward, [turn.reward for turn in sample.trajectory.turns])
            for reward, sample in zip(rewards, group.samples, strict=True)
        ]
        return [advantages.tolist() for advantages in turn_advantages(by_turn, kind)]
