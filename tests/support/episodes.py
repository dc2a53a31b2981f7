"""Episodes as tests play them: a policy that says what it is told to, and an environment that does."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
from transformers import PreTrainedTokenizerFast

from routershift import wire
from routershift.client.requests import Prompt, Sampling
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, RouterTrace, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from services.environments.base import Action, Environment, EnvironmentSettings, Observation, Step
from services.environments.playing.limits import EpisodeLimits
from services.environments.playing.player import Player
from services.environments.playing.rendering import Rendering
from services.environments.registry import Configured
from services.environments.tool_calls.base import Parser
from shared.models.chat import ChatTemplate
from tests.support.models import EOS

LAYOUT = RouterLayout((0, 2), 8, 2, ScoreFunction.SOFTMAX)


class Script:
    """A policy that writes the given turns in every episode, and keeps what it was asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, turns: Sequence[str], *, ends: bool = True) -> None:
        """Args: ends: each turn with an end of sequence, as far as max_tokens allows."""
        self.tokenizer = tokenizer
        self.turns = turns
        self.ends = ends
        self.asked: list[tuple[list[int], Sampling]] = []
        self.aborts = 0  # of the next calls
        self.version = 0

    async def generate(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]
        turn = len({len(asked) for asked, _ in self.asked if len(asked) < len(ids)})  # all episodes say the same
        self.asked.append((ids, sampling))
        await asyncio.sleep(0)
        said = self.tokenizer.encode(self.turns[min(turn, len(self.turns) - 1)], add_special_tokens=False)
        said = (said + [EOS] * self.ends)[: sampling["max_tokens"]]
        stopped = FinishReason.STOP if self.ends and said[-1] == EOS else FinishReason.LENGTH
        if self.aborts:
            self.aborts -= 1
            stopped = FinishReason.ABORTED
        self.version += 1
        tokens = np.array(said, np.int32)
        experts = np.stack([tokens % 8, (tokens + 1) % 8], -1)[:, None, :].repeat(2, axis=1).astype(np.uint8)
        trace = RouterTrace(LAYOUT, experts, np.full(experts.shape, -0.5, np.float16))
        return [
            Completion(
                index=0,
                token_ids=tokens,
                logprobs=np.full(tokens.size, -0.25, np.float32),
                versions=(VersionSpan(self.version, tokens.size),),
                finish_reason=stopped,
                router_trace=trace if return_router else None,
                text=self.tokenizer.decode(said, skip_special_tokens=True),
            )
        ]


class Scripted(Environment):
    """Answers as a test says. `open` counts what was not closed."""

    name = "scripted"
    version = "1"
    description = "answers as a test says"
    open = 0

    def __init__(self, settings: EnvironmentSettings) -> None:
        super().__init__(settings)
        self.reset_with: tuple[Mapping[str, Any], int] | None = None
        self.actions: list[Action] = []

    async def reset(self, task: Mapping[str, Any], seed: int) -> Observation | None:
        type(self).open += 1
        self.reset_with = (task, seed)
        return await self.first(task, seed)

    async def step(self, action: Action) -> Step:
        self.actions.append(action)
        return await self.answer(action, len(self.actions) - 1)

    async def close(self) -> None:
        type(self).open -= self.reset_with is not None

    async def first(self, task: Mapping[str, Any], seed: int) -> Observation | None:
        return None

    async def answer(self, action: Action, turn: int) -> Step:
        raise NotImplementedError


Answer = Callable[[Action, int], Awaitable[Any]]


class Made(Scripted):
    """All of one kind."""

    made: ClassVar[list[Scripted]]


def scripted(answer: Answer, first: Callable[[], Awaitable[Any]] | None = None, **attributes: Any) -> type[Made]:
    """A class of environments whose steps answer so. Its `made` has all of them."""

    class Told(Made):
        made: ClassVar[list[Scripted]] = []

        def __init__(self, settings: EnvironmentSettings) -> None:
            super().__init__(settings)
            self.made.append(self)

        async def first(self, task: Mapping[str, Any], seed: int) -> Any:
            return await first() if first else None

        async def answer(self, action: Action, turn: int) -> Any:
            return await answer(action, turn)

    Told.open = 0
    for name, value in attributes.items():
        setattr(Told, name, value)
    return Told


def player(
    policy: Any,
    kind: type[Environment] | Mapping[str, Configured],
    tokenizer: PreTrainedTokenizerFast,
    parser: Parser | None = None,
    max_model_len: int = 256,
    **limits: Any,
) -> Player:
    """Args: kind: the one environment, or all by name."""
    made = {kind.name: Configured(kind.name, kind, kind.Settings())} if isinstance(kind, type) else kind
    return Player(
        policy,
        made,
        Rendering(tokenizer, ChatTemplate(tokenizer, Path("model"))),
        EpisodeLimits(**limits),
        max_model_len=max_model_len,
        max_tokens=64,
        seed=7,
        parser=parser,
    )


def prompt(
    text: str = "1+1=", n: int = 2, environment: str = "scripted", task: Mapping[str, Any] | None = None, **rest: Any
) -> pb.Prompt:
    """`rest` are fields of the sampling, and verifier."""
    verifier = rest.pop("verifier", "")
    return pb.Prompt(
        run_id="run",
        prompt_id="prompt-1",
        text=text,
        environment=environment,
        verifier=verifier,
        reference=wire.encode_struct(task or {}),
        sampling=pb.SamplingParams(n=n, **rest),
    )
