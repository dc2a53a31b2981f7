"""The samples that a learner keeps, on a real Redis and with a real model: what is in them, and what stops nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from routershift.trajectory import Role
from services.learner.data.batch import Group
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.tracking.samples import Samples
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learning import GROUPS, Learning, nothing_in_flight, tables
from tests.support.models import SYMBOLS, save_model
from tests.support.rollouts import Piece, load, perturbed, random_groups, record_episode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model: Path) -> list[Group]:
    return random_groups(perturbed(load(model), 0.005), groups=12, samples=SAMPLES)


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("routershift_learner_samples_total", {"outcome": outcome}) or 0.0


async def test_a_step_leaves_what_each_token_went_through(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=2, samples__groups=1)
    sent = [message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])]
    for i, each in enumerate(sent):
        each.prompt.text, each.prompt.problem_id = f"prompt {i}", f"row-{i}"
        for trajectory in each.trajectories:
            trajectory.completion.text = f"response {trajectory.id.sample}"
            trajectory.score.verifier, trajectory.score.verifier_version = "countdown", "3"
    await put(run, Stream.SCORED, *sent)
    async with Learning(settings, run) as learning:
        await until(lambda: nothing_in_flight(run))
    await learning.worker.close()
    reader = Samples(settings.run.path)
    assert reader.steps() == [1, 2]
    for step in (1, 2):
        found = reader.summaries(step)
        assert [s.trajectory.rpartition("/")[2] for s in found] == [str(i) for i in range(SAMPLES)]
        assert {s.group for s in found} <= {f"{i:08d}/0" for i in range((step - 1) * GROUPS, step * GROUPS)}
        for summary in found:
            index, sample = int(summary.prompt_id), int(summary.trajectory.rpartition("/")[2])
            was = groups[index].samples[sample]
            read = reader.read(step, summary.trajectory)
            tokens = read.tokens
            assert read.outcome == "trained"
            assert (read.prompt, read.problem, read.response) == (
                f"prompt {index}",
                f"row-{index}",
                f"response {sample}",
            )
            assert (read.reward, read.parts) == (was.reward, {"correct": was.reward})
            assert (read.verifier, read.verifier_version, read.finish_reason) == ("countdown", "3", "stop")
            assert read.layers == (0, 1, 2)
            assert tokens.ids.tolist() == was.completion.token_ids.tolist()
            assert len(tokens.pieces) == tokens.ids.size
            assert set(tokens.versions) == {0}
            np.testing.assert_allclose(tokens.logprobs, was.completion.logprobs, rtol=1e-3)
            assert tokens.trained_logprobs is not None
            assert tokens.drift is not None
            assert tokens.gamma is not None
            assert tokens.trained_logprobs.tolist() != tokens.logprobs.tolist()
            assert tokens.drift.shape == (tokens.ids.size, 3)
            assert (
                0 < summary.gamma_min <= summary.gamma_mean < 1 if summary.gamma_min and summary.gamma_mean else False
            )
        advantages = [summary.advantage or 0.0 for summary in found]
        assert np.mean(advantages) == pytest.approx(0, abs=1e-5)
        assert np.std(advantages) == pytest.approx(1, abs=1e-4)


async def test_an_episode_is_kept_with_what_others_said(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    """Texts that were left out are made of the tokens; what training knows is of the sampled ones."""
    settings = tables(tmp_path, model, steps=1, samples__groups=GROUPS)
    policy = load(model)
    pieces: list[Piece] = [(True, [9, 8, 7]), (False, [4, 5]), (True, [6, 4]), (False, [3])]
    samples = tuple(record_episode(policy, [5, 6, 7], pieces, reward=float(i % 2)) for i in range(SAMPLES))
    sent = [message(Group("episodes", samples), 0), *(message(g, i) for i, g in enumerate(groups[1:GROUPS], 1))]
    sent[0].trajectories[0].segments[1].text = "said"
    await put(run, Stream.SCORED, *sent)
    async with Learning(settings, run) as learning:
        await until(lambda: nothing_in_flight(run))
    await learning.worker.close()
    reader = Samples(settings.run.path)
    read = reader.read(1, "00000000/0/0")
    assert read.outcome == "trained"
    assert [(each.role, each.tokens, each.is_sampled) for each in read.segments] == [
        (Role.ASSISTANT, 3, True),
        (Role.TOOL, 2, False),
        (Role.ASSISTANT, 2, True),
        (Role.TOOL, 1, False),
    ]
    assert [each.text for each in read.segments if not each.is_sampled] == ["said", SYMBOLS[3]]
    assert reader.read(1, "00000000/0/1").segments[1].text == SYMBOLS[4] + SYMBOLS[5]
    assert read.response == SYMBOLS[6] + SYMBOLS[4]
    assert read.tokens.ids.tolist() == [9, 8, 7, 6, 4]
    assert read.tokens.gamma is not None
    assert read.tokens.gamma.shape == (5,)


async def test_what_was_dropped_is_kept_with_its_reason(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    """Also where no step ever comes: that is when people look."""
    settings = tables(tmp_path, model, steps=2)
    flat = [message(g, i) for i, g in enumerate(groups[:3])]
    for trajectory in (trajectory for group in flat for trajectory in group.trajectories):
        trajectory.score.reward = 0.0
    await put(run, Stream.SCORED, *flat)
    async with Learning(settings, run) as learning:
        await until(lambda: nothing_in_flight(run))
    await learning.worker.close()
    found = Samples(settings.run.path).summaries()
    assert [(s.step, s.outcome, s.group) for s in found] == [(1, "zero_variance", "00000000/0")] * SAMPLES
    read = Samples(settings.run.path).read(1, found[0].trajectory)
    assert (read.advantage, read.tokens.trained_logprobs, read.tokens.drift) == (None, None, None)
    assert read.reward == 0.0


async def test_a_stale_group_is_kept_beside_those_that_were_trained_on(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=3)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 3 * GROUPS])))
    async with Learning(settings, run) as learning:
        await until(lambda: nothing_in_flight(run))
    await learning.worker.close()
    found = Samples(settings.run.path).summaries()
    assert {(s.step, s.outcome) for s in found} == {(1, "trained"), (2, "trained"), (3, "stale")}


async def test_none_is_a_choice(run: Run, tmp_path: Path, model: Path, groups: list[Group]) -> None:
    settings = tables(tmp_path, model, steps=1, samples__groups=0, samples__dropped=0)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(settings, run) as learning:
        await until(lambda: nothing_in_flight(run))
    await learning.worker.close()
    assert not (settings.run.path / "samples").exists()


async def test_a_disk_that_takes_no_samples_stops_nothing_and_is_said_once(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], caplog: pytest.LogCaptureFixture
) -> None:
    settings = tables(tmp_path, model, steps=3, samples__groups=1)
    refused, kept = counted("refused"), counted("kept")
    with volume_missing(settings.run.path / "samples"):
        await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))
        async with Learning(settings, run) as learning:
            await until(lambda: nothing_in_flight(run))
        await learning.worker.close()
    assert learning.trainer.step == 2
    assert counted("refused") == refused + 2 * SAMPLES
    assert counted("kept") == kept
    assert sum("samples not kept" in line for line in caplog.messages) == 1


async def test_a_model_whose_tokenizer_is_broken_stops_nothing(
    run: Run, tmp_path: Path, groups: list[Group], caplog: pytest.LogCaptureFixture
) -> None:
    model = save_model(tmp_path / "model")
    settings = tables(tmp_path, model, steps=2)
    failed = counted("failed")
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))
    learning = Learning(settings, run)
    (model / "tokenizer.json").write_text("{")
    async with learning:
        await until(lambda: nothing_in_flight(run))
    await learning.worker.close()
    assert learning.trainer.step == 2
    assert counted("failed") == failed + 2 * GROUPS * SAMPLES
    assert sum("tokenizer.json" in line for line in caplog.messages) == 1


@contextlib.contextmanager
def volume_missing(folder: Path) -> Iterator[None]:
    """A file stands where the folder should be, so nothing can be written there, as root or not."""
    folder.parent.mkdir(parents=True)
    folder.touch()
    yield
    folder.unlink()
