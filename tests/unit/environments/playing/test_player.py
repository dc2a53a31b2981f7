"""Episodes of a group are played in token ids, and fail as a whole, with a reason.

Long because each way in which an episode ends or fails is played.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from routershift import wire
from routershift.trajectory import FinishReason, Role, Segment, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from services.environments.base import (
    Action,
    Message,
    MessagesObservation,
    Step,
    TextObservation,
    TokensObservation,
)
from services.environments.playing.failures import EpisodeFailedError, Reason
from shared.errors import InvalidInputError, NotFoundError, UnavailableError
from tests.support.episodes import Answer, Script, player, prompt, scripted
from tests.support.generation import CHAT_TEMPLATE
from tests.support.models import EOS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'tool'", "'never'")
    return tokenizer


async def done(action: Action, turn: int) -> Step:
    """The second turn is the last."""
    if turn == 0:
        return Step(TextObservation("42,"), reward=0.25)
    return Step(reward=1.0, is_done=True, parts={"correct": 1.0})


def encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


async def test_each_turn_is_sampled_from_exactly_the_tokens_so_far(tokenizer: PreTrainedTokenizerFast) -> None:
    script = Script(tokenizer, ["6*7", "42"])
    kind = scripted(done, stop=("?",))
    group = await player(script, kind, tokenizer).play(
        prompt("1+1=", n=3, max_tokens=20, seed=100, temperature=0.5, stop=[":"], top_k=4, task={"numbers": [6, 7]})
    )
    start, first = encoded(tokenizer, "1+1="), [*encoded(tokenizer, "6*7"), EOS]
    second = [*start, *first, *encoded(tokenizer, "42,")]
    asked = [ids for ids, _ in script.asked]
    assert sorted(asked) == sorted([start] * 3 + [second] * 3)
    assert all(sampling["stop"] == [":", "?"] and sampling["top_k"] == 4 for _, sampling in script.asked)
    assert all(sampling["temperature"] == 0.5 for _, sampling in script.asked)
    assert {s["max_tokens"] for ids, s in script.asked if ids == start} == {20}
    assert {s["max_tokens"] for ids, s in script.asked if ids == second} == {16}, "what the first turn left"
    assert {s["seed"] for ids, s in script.asked if ids == start} == {100, 101, 102}
    assert len({s["seed"] for _, s in script.asked}) == 6

    assert list(group.prompt.token_ids) == start
    assert [t.id.sample for t in group.trajectories] == [0, 1, 2]
    for message in group.trajectories:
        trajectory = wire.decode_trajectory(message)
        assert trajectory.segments == (
            Segment(Role.ASSISTANT, 4, True, "6*7", 0.25),
            Segment(Role.TOOL, 3, False, "42,"),
            Segment(Role.ASSISTANT, 3, True, "42", 1.0),
        )
        assert [*start, *trajectory.token_ids.tolist()] == [*second, *encoded(tokenizer, "42"), EOS]
        assert trajectory.completion.finish_reason is FinishReason.STOP
        assert trajectory.completion.router_trace is not None
        assert trajectory.completion.router_trace.expert_ids.shape[0] == 7
        (one, other) = trajectory.completion.versions
        assert (one.tokens, other.tokens) == (4, 3)
        assert one.version < other.version, "weights that came between the turns"
        assert message.score.outcome == pb.OUTCOME_SCORED
        assert message.score.reward == 1.25
        assert dict(message.score.parts) == {"correct": 1.0}
        assert (message.score.verifier, message.score.verifier_version) == ("scripted", "1")
    starts = [made.reset_with for made in kind.made]
    assert len(starts) == 3
    assert all(each == starts[0] for each in starts), "one task and one seed"
    assert starts[0] is not None
    assert starts[0][0] == {"numbers": [6, 7]}
    assert kind.open == 0


async def test_the_seed_of_a_reset_is_of_the_run_and_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    seeds = []
    for name in ("a", "a", "b"):
        kind = scripted(done)
        asked = prompt()
        asked.prompt_id = name
        await player(Script(tokenizer, ["6*7"]), kind, tokenizer).play(asked)
        assert kind.made[0].reset_with is not None
        seeds.append(kind.made[0].reset_with[1])
    assert seeds[0] == seeds[1] != seeds[2]


async def test_a_verifier_judges_where_the_prompt_names_one(tokenizer: PreTrainedTokenizerFast) -> None:
    group = await player(Script(tokenizer, ["6*7", "42"]), scripted(done), tokenizer).play(prompt(verifier="math"))
    assert not any(trajectory.HasField("score") for trajectory in group.trajectories)
    assert all(segment.reward is None for t in group.trajectories for segment in wire.decode_trajectory(t).segments)
    assert not group.HasField("scored_at")


async def test_an_episode_that_nobody_rewards_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    kind = scripted(done, rewards=False)
    with pytest.raises(
        InvalidInputError, match="verifier is empty, and environment scripted rewards no episodes; name"
    ):
        await player(Script(tokenizer, ["6*7"]), kind, tokenizer).play(prompt())
    assert kind.open == 0


async def test_turns_tokens_and_the_context_bound_an_episode(tokenizer: PreTrainedTokenizerFast) -> None:
    async def goes_on(action: Action, turn: int) -> Step:
        return Step(TextObservation("7777"), reward=0.5, parts={"correct": 0.0})

    async def play(ends: bool = True, text: str = "1+1=", **bounds: Any) -> tuple[pb.Trajectory, list[int]]:
        limits = {key: bounds.pop(key) for key in ("turns", "max_model_len") if key in bounds}
        script = Script(tokenizer, ["22"], ends=ends)
        asked = player(script, scripted(goes_on), tokenizer, **limits)
        (trajectory,) = (await asked.play(prompt(text, n=1, **bounds))).trajectories
        return trajectory, [sampling["max_tokens"] for _, sampling in script.asked]

    by_turns, rooms = await play(turns=3)
    assert rooms == [64, 61, 58]
    by_tokens, rooms = await play(max_tokens=7)
    assert rooms == [7, 4, 1]
    by_context, rooms = await play(max_model_len=4 + 3 + 4 + 2)
    assert rooms == [9, 2]
    for trajectory, sampled, reward in ((by_turns, 9, 1.5), (by_tokens, 7, 1.5), (by_context, 5, 1.0)):
        decoded = wire.decode_trajectory(trajectory)
        assert decoded.completion.finish_reason is FinishReason.LENGTH
        assert decoded.completion.token_ids.size == sampled
        assert decoded.segments[-1].is_sampled, "what is given after the last turn teaches nothing"
        assert trajectory.score.reward == reward
    with pytest.raises(InvalidInputError, match=r"scripted are 4 tokens long; allowed: below the model's 4; shorten"):
        await play(max_model_len=4)


@pytest.mark.parametrize(("said", "parts"), [({}, {"correct": 0.0}), ({"correct": 1.0}, {"correct": 1.0})])
async def test_an_episode_that_is_cut_is_no_success_unless_its_environment_says_so(
    tokenizer: PreTrainedTokenizerFast, said: dict[str, float], parts: dict[str, float]
) -> None:
    """Many say it only at the end, which a cut episode never sees; an evaluation needs it of each."""

    async def goes_on(action: Action, turn: int) -> Step:
        return Step(TextObservation("7777"), parts=said)

    asked = player(Script(tokenizer, ["22"]), scripted(goes_on), tokenizer, turns=2)
    (trajectory,) = (await asked.play(prompt("1+1=", n=1))).trajectories
    assert dict(trajectory.score.parts) == parts
    assert trajectory.score.reward == 0.0


async def test_a_turn_that_was_cut_is_told_to_the_environment(tokenizer: PreTrainedTokenizerFast) -> None:
    kind = scripted(done)
    await player(Script(tokenizer, ["6*7", "42"]), kind, tokenizer).play(prompt(n=1, max_tokens=6))
    assert [action.finish_reason for action in kind.made[0].actions] == [FinishReason.STOP, FinishReason.LENGTH]
    assert [action.text for action in kind.made[0].actions] == ["6*7", "42"]


async def test_one_turn_is_a_trajectory_without_segments(tokenizer: PreTrainedTokenizerFast) -> None:
    async def at_once(action: Action, turn: int) -> Step:
        return Step(reward=None, is_done=True)

    kind = scripted(at_once, rewards=False)
    group = await player(Script(tokenizer, ["42"]), kind, tokenizer).play(prompt(verifier="math"))
    assert all(not trajectory.segments for trajectory in group.trajectories)


async def test_what_is_read_before_the_first_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    async def text() -> TextObservation:
        return TextObservation("9:", Role.USER)

    script = Script(tokenizer, ["6*7", "42"])
    group = await player(script, scripted(done, text), tokenizer).play(prompt())
    assert script.asked[0][0] == encoded(tokenizer, "1+1=9:")
    assert wire.decode_trajectory(group.trajectories[0]).segments[0] == Segment(Role.USER, 2, False, "9:")

    async def messages() -> MessagesObservation:
        return MessagesObservation((Message(Role.USER, "9"),))

    script = Script(tokenizer, ["6*7", "42"])
    asked = prompt("")
    asked.messages.add(role=pb.ROLE_SYSTEM, content="1+1")
    group = await player(script, scripted(done, messages), tokenizer).play(asked)
    assert tokenizer.decode(script.asked[0][0]) == "<eos>1+1<eos>9="
    assert list(group.prompt.token_ids) == script.asked[0][0]
    with pytest.raises(InvalidInputError, match="prompt is text, and environment scripted begins with messages"):
        await player(script, scripted(done, messages), tokenizer).play(prompt())
    with pytest.raises(InvalidInputError, match="prompt is empty; set token_ids, text or messages"):
        await player(script, scripted(done), tokenizer).play(prompt(""))


async def test_observations_may_be_token_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    async def answer(action: Action, turn: int) -> Step:
        return Step(TokensObservation((5, 6))) if turn == 0 else Step(reward=1, is_done=True)

    script = Script(tokenizer, ["6*7", "42"])
    await player(script, scripted(answer), tokenizer).play(prompt(n=1))
    assert script.asked[1][0][-3:] == [EOS, 5, 6]


async def test_a_turn_that_new_weights_cut_is_sampled_again(tokenizer: PreTrainedTokenizerFast) -> None:
    script = Script(tokenizer, ["6*7", "42"])
    script.aborts = 2
    kind = scripted(done)
    group = await player(script, kind, tokenizer, attempts=3).play(prompt(n=1, seed=3))
    assert [ids for ids, _ in script.asked[:3]] == [encoded(tokenizer, "1+1=")] * 3
    assert len({sampling["seed"] for _, sampling in script.asked[:3]}) == 1
    assert wire.decode_trajectory(group.trajectories[0]).completion.versions[0] == VersionSpan(3, 4)
    script = Script(tokenizer, ["6*7"])
    script.aborts = 2
    with pytest.raises(EpisodeFailedError, match=r"turn 0 of an episode was aborted 2 times") as failed:
        await player(script, kind, tokenizer, attempts=2).play(prompt(n=1))
    assert failed.value.reason is Reason.ABORTED
    assert kind.open == 0


async def raises(action: Action, turn: int) -> Step:
    raise KeyError("no such thing")


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError


async def raises_unspeakably(action: Action, turn: int) -> Step:
    raise UnspeakableError


async def ends_the_process(action: Action, turn: int) -> Step:
    raise SystemExit(3)


async def cancels_itself(action: Action, turn: int) -> Step:
    raise asyncio.CancelledError


async def refuses(action: Action, turn: int) -> Step:
    raise InvalidInputError("it may not say that of what a policy wrote")


def answering(answer: Any) -> Answer:
    async def step(action: Action, turn: int) -> Any:
        return answer

    return step


MEGABYTES = "7" * 3_000_000
FAULTS: list[tuple[Answer, str]] = [
    (raises, r"step raised KeyError: 'no such thing'"),
    (raises_unspeakably, r"step raised UnspeakableError: \(its message cannot be shown\)"),
    (ends_the_process, r"step raised RuntimeError: SystemExit: an environment may not end its process"),
    (cancels_itself, r"step raised RuntimeError: CancelledError"),
    (refuses, r"step: it may not say that"),
    (answering(None), r"step: step answered None; expected a Step"),
    (answering({"reward": 1}), r"step answered a dict; expected a Step"),
    (answering(Step(reward=math.nan, is_done=True)), r"step\.reward is nan; expected a finite number"),
    (answering(Step(reward=-math.inf, is_done=True)), r"step\.reward is -inf"),
    (answering(Step(reward="1", is_done=True)), r"step\.reward is '1'"),  # type: ignore[arg-type]
    (answering(Step(reward=10**400, is_done=True)), r"step\.reward is 0x"),
    (answering(Step(reward=1, is_done=1)), r"step\.is_done is 1; expected True or False"),  # type: ignore[arg-type]
    (answering(Step(reward=1, is_done=True, parts={"correct": math.nan})), r"parts\['correct'\] is nan"),
    (answering(Step(reward=1, is_done=True, parts={3: 1.0})), r"parts has the name 3"),  # type: ignore[dict-item]
    (answering(Step(reward=1, is_done=True, parts=[1])), r"step\.parts is a list"),  # type: ignore[arg-type]
    (answering(Step("text")), r"the observation is 'text'; expected a TextObservation"),  # type: ignore[arg-type]
    (answering(Step(TextObservation(7))), r"the observation is a TextObservation"),  # type: ignore[arg-type]
    (answering(Step(TextObservation("7" * 17))), r"an observation: it is 17 tokens long; expected up to 16"),
    (answering(Step(TextObservation(MEGABYTES))), r"the observation is 3000000 characters; expected up to 1024: cut"),
    (answering(Step(TextObservation("\ud800"))), r"a text with half a character at 0"),
    (answering(Step(TokensObservation((1, -1)))), r"the token id -1; expected 0 to 2"),
    (answering(Step(TokensObservation((1, 1 << 40)))), r"the token id 1099511627776"),
    (answering(Step(TokensObservation((True,)))), r"the token id True"),
    (answering(Step(TokensObservation(tuple(range(17))))), r"17 token ids; expected up to 16"),
    (answering(Step(MessagesObservation(()))), r"0 messages; expected 1 to 256"),
    (answering(Step(MessagesObservation(("a",)))), r"'a' among its messages"),  # type: ignore[arg-type]
    (answering(Step(is_done=True)), r"an episode ended and none of its 1 turns was rewarded"),
    (answering(Step(TextObservation("7"), reward=1.7e308)), r"the rewards of an episode add up to inf"),
]


@pytest.mark.parametrize(("answer", "message"), FAULTS, ids=range(len(FAULTS)))
async def test_a_fault_of_the_environment_is_no_reward_of_0(
    tokenizer: PreTrainedTokenizerFast, answer: Answer, message: str
) -> None:
    kind = scripted(answer)
    with pytest.raises(EpisodeFailedError, match=message) as failed:
        await player(Script(tokenizer, ["22"]), kind, tokenizer, observation_tokens=16, turns=4).play(prompt())
    assert str(failed.value).startswith("environment scripted: ")
    assert failed.value.reason is Reason.ENVIRONMENT_FAILED
    assert kind.open == 0, "all of the group are closed"


async def test_a_method_that_is_not_awaited_is_a_fault(tokenizer: PreTrainedTokenizerFast) -> None:
    kind = scripted(done, step=lambda self, action: Step(reward=1, is_done=True))
    with pytest.raises(EpisodeFailedError, match=r"step raised TypeError: .*await"):
        await player(Script(tokenizer, ["22"]), kind, tokenizer).play(prompt())


async def forever(*_: object) -> Any:
    await asyncio.Event().wait()


async def stubborn(*_: object) -> Any:
    """Does not end where it is cancelled."""
    until = time.monotonic() + 4
    while time.monotonic() < until:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            continue


@pytest.mark.parametrize("hangs", [forever, stubborn])
@pytest.mark.parametrize("method", ["reset", "step"])
async def test_an_environment_that_hangs_has_a_deadline(
    tokenizer: PreTrainedTokenizerFast, hangs: Callable[..., Awaitable[Any]], method: str
) -> None:
    kind = scripted(hangs) if method == "step" else scripted(done, hangs)
    with pytest.raises(EpisodeFailedError, match=rf"{method} has not answered within .*turn_seconds = 1") as failed:
        await player(Script(tokenizer, ["22"]), kind, tokenizer, turn_seconds=1.0).play(prompt())
    assert failed.value.reason is Reason.ENVIRONMENT_TIMED_OUT
    assert kind.open == 0


async def test_an_episode_has_a_deadline(tokenizer: PreTrainedTokenizerFast) -> None:
    async def slowly(action: Action, turn: int) -> Step:
        await asyncio.sleep(0.05)
        return Step(TextObservation("7"))

    kind = scripted(slowly)
    asked = player(Script(tokenizer, [""]), kind, tokenizer, turns=1000, episode_seconds=0.3, turn_seconds=60)
    with pytest.raises(EpisodeFailedError, match=r"not ended within environments\.episode_seconds = 0\.3") as failed:
        await asked.play(prompt(max_tokens=10_000))
    assert failed.value.reason is Reason.EPISODE_TIMED_OUT
    assert kind.open == 0


async def test_all_environments_are_closed_where_play_is_cancelled(tokenizer: PreTrainedTokenizerFast) -> None:
    reached = asyncio.Semaphore(0)

    async def waits(action: Action, turn: int) -> Any:
        reached.release()
        await asyncio.Event().wait()

    kind = scripted(waits)
    playing = asyncio.create_task(player(Script(tokenizer, ["22"]), kind, tokenizer).play(prompt(n=4)))
    async with asyncio.timeout(60):
        for _ in range(4):
            await reached.acquire()
    assert kind.open == 4
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert kind.open == 0


async def test_a_task_that_is_none_is_bad_input(tokenizer: PreTrainedTokenizerFast) -> None:
    async def no_task() -> None:
        raise InvalidInputError("task.size is 0; expected 2 to 9")

    kind = scripted(done, no_task)
    with pytest.raises(InvalidInputError, match=r"task\.size is 0"):
        await player(Script(tokenizer, ["22"]), kind, tokenizer).play(prompt())
    assert kind.open == 0


async def test_episodes_that_begin_differently_are_a_fault(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = iter("789")

    async def differs() -> TextObservation:
        return TextObservation(next(texts))

    with pytest.raises(EpisodeFailedError, match="different observations; draw what is random from the seed"):
        await player(Script(tokenizer, ["22"]), scripted(done, differs), tokenizer).play(prompt())


async def test_what_the_policy_raises_is_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    class Gone(Script):
        async def generate(self, *arguments: Any, **rest: Any) -> Any:
            raise UnavailableError("generation is gone")

    kind = scripted(done)
    with pytest.raises(UnavailableError, match="generation is gone"):
        await player(Gone(tokenizer, []), kind, tokenizer).play(prompt())
    assert kind.open == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": "scriptd"}, r"environment is 'scriptd'; known: scripted; did you mean 'scripted'"),
        ({"n": 0}, r"sampling\.n is 0; allowed: 1 to 1024"),
        ({"max_tokens": 0}, r"sampling\.max_tokens is 0; allowed: 1 and more"),
    ],
)
async def test_a_prompt_that_cannot_be_played(
    tokenizer: PreTrainedTokenizerFast, change: dict[str, Any], message: str
) -> None:
    with pytest.raises((InvalidInputError, NotFoundError), match=message):
        await player(Script(tokenizer, ["22"]), scripted(done), tokenizer).play(prompt(**change))
