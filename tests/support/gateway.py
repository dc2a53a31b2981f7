"""The agent gateway on a port of its own, before a real generation service or a policy that follows a script."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from routershift import wire
from routershift.client.requests import Sampling
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, RouterTrace, TopLogprobs, VersionSpan
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import trajectory_pb2 as pb
from services.environments.gateway.gateway import Gateway
from services.environments.gateway.model import Policy
from services.environments.gateway.settings import GatewaySettings
from services.environments.playing.episode import Policy as TurnPolicy
from services.environments.playing.limits import EpisodeLimits
from services.environments.playing.player import Player
from services.environments.playing.policy import Policy as Waiting
from services.environments.playing.rendering import Rendering
from services.environments.registry import make_environments
from services.environments.tool_calls.base import Parser
from services.environments.tool_calls.hermes import HermesParser
from shared.models.detokenizer import TextStream
from shared.models.tokenizer import backend, load_tokenizer
from shared.settings import AccessSettings, ServerSettings
from tests.support.models import save_model
from tests.support.tokenizers import byte_level

# In the form of Qwen's: thoughts of turns before the last question are left out, calls are JSON in tags.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + content }}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>\n' }}"
    '{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}'
    "{{ '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]
LONGEST = 1024
_FAVOUR = 2.0  # times the logits of what it says often: with a spread of 4, that is most of what it says
LAYOUT = RouterLayout((0, 1, 2), 8, 2, ScoreFunction.SOFTMAX)


def save_tokenizer(
    folder: Path, template: str = TEMPLATE, special: Sequence[str] = SPECIAL, says: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Args: special: special tokens; says: texts that are one token each."""
    tokens = byte_level()
    tokens.add_special_tokens(list(special))
    tokens.add_tokens([text for text in says if tokens.token_to_id(text) is None])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_agent_model(folder: Path, template: str = TEMPLATE, says: Sequence[str] = (), **changes: Any) -> Path:
    """A random model whose tokens are bytes, so that any text is said and read.

    Args:
        says: texts that it says more often than others, each a token; and so it does with the end of a turn.
    """
    tokenizer = save_tokenizer(folder, template, says=says)
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST, "eos_token_id": tokenizer.eos_token_id}
    save_model(folder, **(config | changes))
    if says:
        weights = load_file(folder / "model.safetensors")
        favoured = tokenizer.convert_tokens_to_ids([*says, "<|im_end|>"])
        weights["lm_head.weight"][favoured] *= _FAVOUR
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(folder, template, says=says)
    return folder


@dataclass
class Scripted:
    """Says one text after the other, whatever it is asked; and keeps what it was asked.

    The version goes up with each response, and half of its tokens are of the version before.
    """

    folder: Path
    says: list[str]
    asked: list[tuple[list[int], Sampling]] = field(default_factory=list)
    waits: asyncio.Event | None = None  # until then it says nothing
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    was_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    said: list[Completion] = field(default_factory=list)
    ends: FinishReason = FinishReason.STOP

    def __post_init__(self) -> None:
        self.tokens: Tokenizer = backend(load_tokenizer(self.folder))

    async def generate(
        self, prompt: Any, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        self.asked.append((list(prompt), sampling))
        self.was_asked.set()
        if self.waits is not None:
            try:
                await self.waits.wait()
            except asyncio.CancelledError:
                self.was_cancelled.set()
                raise
        return [self._say(index, sampling, return_router) for index in range(sampling.get("n", 1))]

    async def stream(
        self, prompt: Sequence[int], *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Completion]:
        for whole in await self.generate(prompt, return_router=return_router, **sampling):
            decoded, last = TextStream(self.tokens), len(whole.token_ids) - 1
            texts = [decoded.add([int(token)], last=t == last) for t, token in enumerate(whole.token_ids)]
            for t, text in enumerate(texts):
                yield Completion(
                    index=whole.index,
                    token_ids=whole.token_ids[t : t + 1],
                    logprobs=whole.logprobs[t : t + 1],
                    versions=(VersionSpan(len(self.said), 1),),
                    finish_reason=whole.finish_reason if t == last else None,
                    router_trace=whole.router_trace if t == last else None,
                    text=text,
                    top_logprobs=_top(whole.token_ids[t : t + 1], sampling.get("logprobs", 0)),
                )

    async def status(self) -> gen.GenerationServiceGetStatusResponse:
        return gen.GenerationServiceGetStatusResponse(max_model_len=LONGEST)

    def _say(self, index: int, sampling: Sampling, return_router: bool) -> Completion:
        text = self.says.pop(0)
        ends = "<|im_end|>" if self.ends is FinishReason.STOP and not sampling.get("stop") else ""
        ids = np.array(self.tokens.encode(text + ends).ids, np.int32)
        drawn = np.random.default_rng(len(self.said))
        shape = (ids.size, len(LAYOUT.layer_ids), LAYOUT.top_k)
        experts = np.stack([drawn.permutation(8)[:2] for _ in range(ids.size * 3)]).reshape(shape).astype(np.uint8)
        trace = RouterTrace(LAYOUT, experts, (-drawn.random(shape)).astype(np.float16)) if return_router else None
        half, version = ids.size // 2, len(self.said)
        spans = (VersionSpan(version, half), VersionSpan(version + 1, ids.size - half))
        logprobs = -drawn.random(ids.size).astype(np.float32)
        tops = _top(ids, sampling.get("logprobs", 0))
        made = Completion(index, ids, logprobs, tuple(s for s in spans if s.tokens), self.ends, trace, text, tops)
        self.said.append(made)
        return made


def _top(ids: np.ndarray[Any, np.dtype[np.int32]], count: int) -> TopLogprobs | None:
    if not count:
        return None
    others = np.stack([(ids + i) % 256 for i in range(count)], axis=1).astype(np.int32)
    return TopLogprobs(others, np.tile(-np.arange(1.0, count + 1, dtype=np.float32), (ids.size, 1)))


@contextlib.asynccontextmanager
async def served(
    policy: Policy,
    model: Path,
    access: AccessSettings | None = None,
    limits: EpisodeLimits | None = None,
    parser: Parser | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[str, Gateway]]:
    """The address of one, as in http://127.0.0.1:8000, and what answers there."""
    made = Gateway(
        GatewaySettings(**settings),
        ServerSettings(),
        access or AccessSettings(),
        model=model,
        longest=LONGEST,
        max_tokens=200,
        policy=policy,
        waiting=Waiting(cast(Any, policy), 60.0, full_seconds=60.0),
        parser=parser or HermesParser(),
        limits=limits or EpisodeLimits(),
        environments=make_environments({"helper": {"kind": "agent"}}),
    )
    address = made.listen()
    async with made.serving():
        yield address, made


@contextlib.asynccontextmanager
async def gateway(
    policy: Policy, model: Path, access: AccessSettings | None = None, **settings: Any
) -> AsyncIterator[str]:
    """The address of one."""
    async with served(policy, model, access, **settings) as (address, _):
        yield address


def player(
    policy: TurnPolicy, gateway: Gateway, model: Path, limits: EpisodeLimits | None = None, **agent: Any
) -> Player:
    """Has one environment, which agents play."""
    environments = make_environments({"helper": {"kind": "agent", **agent}})
    return Player(
        policy,
        environments,
        Rendering.of(model),
        limits or EpisodeLimits(),
        max_model_len=LONGEST,
        max_tokens=200,
        parser=HermesParser(),
        agents=gateway.episodes,
    )


def prompt(n: int = 2, question: str = "What is 6 times 7?", **fields: Any) -> pb.Prompt:
    """A prompt of the environment of `player`."""
    reference = wire.encode_struct({"answer": 42})
    said = [pb.Message(role=pb.ROLE_USER, content=question)]
    named = {"run_id": "run", "prompt_id": "p1"} | fields
    made = pb.Prompt(environment="helper", messages=said, reference=reference, **named)
    made.sampling.n = n
    made.sampling.temperature = 1.0
    made.sampling.seed = 5
    return made
