"""Responses in which given tokens stand between sampled ones, against loops over their tokens, in every family.

Long because the plain computation over single tokens stands beside what it is compared with.
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from routershift.routing.hooks import Routing
from routershift.routing.layout import ScoreFunction
from routershift.routing.shift import Routes
from routershift.trajectory import RouterTrace
from services.learner.data.batch import Group, Weighted, micro_batches
from services.learner.trainer import Trainer
from shared.settings import RolloutSettings, RunSettings
from tests.support.models import MOE_KINDS, VOCABULARY, save_model
from tests.support.rollouts import Piece, load, perturbed, record_episode, routing
from tests.support.settings import learner_settings
from tests.support.training import PLAIN, gradients

GAMMA_MIN, CLIP, RATIO_CLIP, ENTROPY, KL = 0.8, 0.4, 0.2, 0.01, 0.5
MAX_TOKENS = 20


@dataclass(frozen=True)
class Episode:
    """One response in plain lists."""

    prompt: list[int]
    pieces: list[Piece]

    @property
    def tokens(self) -> list[int]:
        return self.prompt + [token for _, tokens in self.pieces for token in tokens]

    @property
    def sampled(self) -> list[int]:
        """Where in `tokens` the sampled ones are."""
        places, place = [], len(self.prompt)
        for was_sampled, tokens in self.pieces:
            for _ in tokens:
                places += [place] if was_sampled else []
                place += 1
        return places


@dataclass
class Expected:
    """What loops over single tokens find of a batch."""

    loss: torch.Tensor
    entropy: list[float]
    kl: list[float]
    gamma: list[float]


Batch = list[tuple[Group, list[Episode]]]


def random_batch(model: PreTrainedModel, forms: Sequence[Sequence[int]], seed: int = 0) -> Batch:
    """A group for each two forms: lengths of the prompt, then of given and of sampled pieces in turns."""
    rng = np.random.default_rng(seed)

    def tokens(count: int) -> list[int]:
        return [int(t) for t in rng.integers(2, VOCABULARY, size=count)]

    batch: Batch = []
    for first, second in zip(forms[::2], forms[1::2], strict=True):
        prompt = tokens(first[0])
        episodes = [
            Episode(prompt, [(i % 2 == 1, tokens(n)) for i, n in enumerate(form[1:]) if n]) for form in (first, second)
        ]
        samples = [record_episode(model, prompt, e.pieces, reward=float(i)) for i, e in enumerate(episodes)]
        batch.append((Group(f"group-{len(batch)}", tuple(samples)), episodes))
    return batch


# One ends with given tokens, one begins with them, one has none.
UNEQUAL = [(3, 0, 4, 5, 3), (3, 0, 2, 1, 1, 6), (2, 2, 1, 1, 1), (2, 0, 6)]
EQUAL = [(4, 0, 3, 4, 3), (4, 1, 2, 2, 1, 3, 1), (6, 0, 2, 3, 3), (6, 0, 8)]


def rows_of(batch: Batch) -> list[int]:
    """How many samples each row of the trainer's input holds."""
    samples = [Weighted(sample, (0.0,)) for group, _ in batch for sample in group.samples]
    return [len(row) for cut in micro_batches(samples, 10_000) for row in cut.rows]


def scores_now(function: ScoreFunction, logits: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """Log-scores of K experts, from the logits [E] of one router for one token."""
    if function is ScoreFunction.SOFTMAX:
        return logits.log_softmax(-1)[experts]
    return logsigmoid(logits[experts]) if function is ScoreFunction.SIGMOID else logits[experts].log_softmax(-1)


def expected(
    model: PreTrainedModel,
    batch: Batch,
    replay: Any,
    token_mean: bool = False,
    by_turn: bool = False,
    reference: PreTrainedModel | None = None,
) -> Expected:
    """One response at a time, one token after the other.

    Args:
        token_mean: GRPO with the mean over all tokens of the batch and a bonus for entropy; else RSPO.
        by_turn: whether each turn is a response of its own.
        reference: the model whose KL divergence is held down.
    """
    replaying = Routing(model, replay="r3") if replay == "r3" else None
    found = Expected(torch.zeros(()), [], [], [])
    terms: list[torch.Tensor] = []
    entropies: list[torch.Tensor] = []
    for group, episodes in batch:
        rewards = [sample.reward for sample in group.samples]
        for number, (sample, episode) in enumerate(zip(group.samples, episodes, strict=True)):
            advantage = (sample.reward - float(np.mean(rewards))) / float(np.std(rewards))
            units = [(len(episode.sampled), advantage)]
            if by_turn:
                lengths = [len(tokens) for was_sampled, tokens in episode.pieces if was_sampled]
                units = list(zip(lengths, advantages_of_two(group)[number], strict=True))
            trace = sample.completion.router_trace
            assert trace is not None
            routes = replayed(trace, [place - 1 for place in episode.sampled])
            with replaying.observing(routes) if replaying else nullcontext(), routing(model) as passes:
                logits = model(torch.tensor([episode.tokens]), use_cache=False).logits[0]
            (routed,) = passes
            with torch.no_grad():
                said = reference(torch.tensor([episode.tokens]), use_cache=False).logits[0] if reference else None
            log_ws, kl = [], []
            for t, place in enumerate(episode.sampled):
                logprobs = logits[place - 1].log_softmax(-1)
                log_w = logprobs[episode.tokens[place]] - float(sample.completion.logprobs[t])
                entropies.append(-(logprobs.exp() * logprobs).sum())
                found.kl.append((log_w.exp() - 1 - log_w).item())
                shifts = []
                for layer, now in enumerate(routed.logits[place - 1].detach()):
                    then = torch.tensor(trace.scores[t, layer]).float()
                    experts = torch.tensor(trace.expert_ids[t, layer]).long()
                    shifts.append(float((scores_now(routed.layout.score_function, now, experts) - then).abs().mean()))
                found.gamma.append(math.exp(-float(np.mean(shifts))))
                log_ws.append(log_w)
                if said is not None:
                    log_r = said[place - 1].log_softmax(-1)[episode.tokens[place]] - logprobs[episode.tokens[place]]
                    kl.append(log_r.exp() - 1 - log_r)
            if token_mean:
                ratio = torch.stack(log_ws).exp()
                clipped = ratio.clamp(1 - RATIO_CLIP, 1 + RATIO_CLIP)
                terms += list(-torch.minimum(ratio * advantage, clipped * advantage))
            else:
                gammas = torch.tensor(found.gamma[-len(log_ws) :]).clamp(min=GAMMA_MIN)
                begin = 0
                for length, advantage in units:
                    sign = math.copysign(1.0, advantage)
                    end = begin + length
                    moved = sign * (torch.stack(log_ws[begin:end]) + gammas[begin:end].log())
                    mean = torch.minimum(moved, moved.clamp(-CLIP, CLIP)).mean()
                    held = KL * torch.stack(kl[begin:end]).mean() if kl else 0.0
                    terms.append(-torch.exp(sign * mean) * advantage + held)
                    begin = end
    found.loss = torch.stack(terms).mean()
    if token_mean:
        found.loss = found.loss - ENTROPY * torch.stack(entropies).mean()
    found.entropy = [entropy.item() for entropy in entropies]
    return found


def advantages_of_two(group: Group) -> list[list[float]]:
    """Those of the turns of a group of two episodes; a turn that one alone has reached has that of its episode."""
    returns = []
    for sample in group.samples:
        earned = [turn.reward or 0.0 for turn in sample.trajectory.turns]
        earned[-1] = sample.reward - sum(earned[:-1])
        returns.append([sum(earned[i:]) for i in range(len(earned))])
    first, second = returns
    found: list[list[float]] = [[], []]
    for turn in range(max(len(first), len(second))):
        at = turn if turn < min(len(first), len(second)) else 0
        half = (first[at] - second[at]) / 2
        for one, own, sign in zip(found, returns, (1, -1), strict=True):
            one += [sign * half] if turn < len(own) else []
    every = [value for one in found for value in one]
    spread = math.sqrt(sum(value**2 for value in every) / len(every))
    return [[value / spread for value in one] for one in found]


def with_turn_rewards(batch: Batch, rng: np.random.Generator) -> Batch:
    """Every turn but the last has earned something."""
    found: Batch = []
    for group, episodes in batch:
        samples = []
        for sample in group.samples:
            trajectory = sample.trajectory
            segments = [
                replace(each, reward=float(rng.normal())) if each.is_sampled else each for each in trajectory.segments
            ]
            samples.append(replace(sample, trajectory=replace(trajectory, segments=tuple(segments))))
        found.append((replace(group, samples=tuple(samples)), episodes))
    return found


def replayed(trace: RouterTrace, predicted_at: list[int]) -> Routes:
    """The recorded experts at the places that predict the sampled tokens, and at no other."""
    count = len(predicted_at)
    return Routes(
        rows=torch.tensor(predicted_at),
        expert_ids=torch.from_numpy(trace.expert_ids.copy()),
        log_scores=torch.from_numpy(trace.scores.copy()),
        missing=torch.zeros(count, dtype=torch.bool),
        lag_zero=torch.zeros(count, dtype=torch.bool),
        traced=None,
    )


def trainer_of(folder: Path, **settings: Any) -> Trainer:
    made = {"micro_batch_tokens": 40, "router_shift__gamma_min": GAMMA_MIN, **PLAIN, **settings}
    return Trainer(learner_settings(**made), RunSettings(model=folder), RolloutSettings(max_tokens=MAX_TOKENS))


def assert_is_as_expected(
    trainer: Trainer,
    folder: Path,
    batch: Batch,
    replay: Any,
    token_mean: bool = False,
    by_turn: bool = False,
    reference: Path | None = None,
) -> None:
    groups = [group for group, _ in batch]
    for group in groups:
        trainer.check(group)
    report = trainer.train_step(groups)
    model = load(folder)
    found = expected(model, batch, replay, token_mean, by_turn, load(reference) if reference else None)
    torch.autograd.backward(found.loss)
    numbers = report.diagnostics
    assert numbers["tokens"] == len(found.kl) == sum(len(e.sampled) for _, episodes in batch for e in episodes)
    assert numbers["loss"] == pytest.approx(found.loss.item(), abs=2e-6)
    assert numbers["entropy"] == pytest.approx(np.mean(found.entropy), rel=1e-4)
    assert numbers["kl"] == pytest.approx(np.mean(found.kl), rel=1e-3, abs=1e-6)
    if not token_mean:
        assert numbers["gamma_mean"] == pytest.approx(np.mean(found.gamma), rel=1e-4)
        assert numbers["missing_route_fraction"] == 0
    made = gradients(trainer)
    assert made
    for name, gradient in made.items():
        wanted = model.get_parameter(name).grad
        torch.testing.assert_close(
            gradient, torch.zeros_like(gradient) if wanted is None else wanted, rtol=2e-4, atol=4e-6, msg=name
        )


@pytest.mark.parametrize("kind", MOE_KINDS)
@pytest.mark.parametrize("replay", ["none", "r3"])
def test_a_family_learns_from_the_sampled_tokens_alone(tmp_path: Path, kind: str, replay: Any) -> None:
    folder = save_model(tmp_path / "model", kind)
    sampler = perturbed(load(folder), 0.005)
    trainer = trainer_of(folder, algorithm="rspo", routing_replay=replay)
    packed, alone = random_batch(sampler, UNEQUAL), random_batch(sampler, EQUAL, seed=1)
    assert max(rows_of(packed)) > 1
    assert rows_of(alone) == [1] * len(EQUAL)
    for batch in (packed, alone):
        assert_is_as_expected(trainer, folder, batch, replay)


def test_the_mean_over_tokens_is_one_over_sampled_tokens(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    batch = random_batch(perturbed(load(folder), 0.005), UNEQUAL)
    trainer = trainer_of(
        folder,
        algorithm="grpo",
        aggregation="token_mean",
        clip_low=RATIO_CLIP,
        clip_high=RATIO_CLIP,
        entropy_coefficient=ENTROPY,
    )
    assert_is_as_expected(trainer, folder, batch, "none", token_mean=True)


@pytest.mark.parametrize("forms", [UNEQUAL, EQUAL])
def test_a_turn_with_an_advantage_of_its_own_is_a_response(tmp_path: Path, forms: list[tuple[int, ...]]) -> None:
    folder = save_model(tmp_path / "model")
    batch = with_turn_rewards(random_batch(perturbed(load(folder), 0.005), forms), np.random.default_rng(2))
    trainer = trainer_of(folder, algorithm="rspo", turn_advantages=True)
    assert_is_as_expected(trainer, folder, batch, "none", by_turn=True)


def test_what_is_kept_of_turns_is_kept_of_their_response(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    batch = with_turn_rewards(random_batch(perturbed(load(folder), 0.005), EQUAL), np.random.default_rng(2))
    groups = [group for group, _ in batch]
    by_turn = trainer_of(folder, algorithm="rspo", turn_advantages=True).train_step(groups, kept=[0, 1]).kept
    whole = trainer_of(folder, algorithm="rspo").train_step(groups, kept=[0, 1]).kept
    assert sorted(by_turn) == sorted(whole) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for place, kept in by_turn.items():
        np.testing.assert_allclose(kept.logprobs, whole[place].logprobs, atol=1e-6)
        group, sample = place
        lengths = [turn.tokens for turn in groups[group].samples[sample].trajectory.turns]
        advantages = advantages_of_two(groups[group])[sample]
        assert kept.advantage == pytest.approx(np.average(advantages, weights=lengths), rel=1e-5)


def test_episodes_of_equal_rewards_teach_by_the_turns_that_earned_them(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    ((group, _),) = random_batch(load(folder), EQUAL[:2])
    equal = replace(group, samples=tuple(replace(sample, reward=1.0) for sample in group.samples))
    ((earned, _),) = with_turn_rewards([(equal, [])], np.random.default_rng(2))
    by_turn, whole = trainer_of(folder, turn_advantages=True), trainer_of(folder)
    assert by_turn.drop_reason(equal) == whole.drop_reason(equal) == whole.drop_reason(earned) == "zero_variance"
    assert by_turn.drop_reason(earned) is None


def test_the_distance_to_the_initial_model_is_that_of_sampled_tokens(tmp_path: Path) -> None:
    initial, moved = save_model(tmp_path / "model"), tmp_path / "moved"
    batch = random_batch(perturbed(load(initial), 0.005), UNEQUAL)
    trainer = trainer_of(initial, algorithm="rspo", kl_coefficient=KL, optimizer__learning_rate=1e-4)
    trainer.train_step([group for group, _ in batch])
    shutil.copytree(initial, moved)
    trainer.export_weights(moved)
    assert_is_as_expected(trainer, moved, batch, "none", reference=initial)
