"""Three turns with the chat templates of model families: each turn reads what was read and said before, token by token.

Where a template rewrites earlier turns, what was sampled stays, and what it writes for new messages follows.
"""

from typing import Any, Unpack

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from routershift import wire
from routershift.client.requests import Prompt, Sampling
from routershift.trajectory import Completion, FinishReason, Role, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from services.environments.base import Action, Message, MessagesObservation, Step
from services.environments.playing.failures import EpisodeFailedError
from services.environments.playing.limits import EpisodeLimits
from services.environments.playing.player import Player
from services.environments.playing.rendering import Rendering
from services.environments.registry import Configured
from services.environments.tool_calls.registry import make_parser
from services.environments.tools import ToolEnvironment
from tests.support.chats import FORMS, HARMONY_TOOLS, QWEN_TOOLS, WITHOUT_THOUGHTS, Form, chat_of, encoded
from tests.support.episodes import scripted


class Says:
    """A policy that says one text after the other, token by token as a model may."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
        self.tokenizer = tokenizer
        self.texts = texts
        self.prompts: list[list[int]] = []
        self.sampled: list[list[int]] = []

    async def generate(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        self.prompts.append([int(token) for token in prompt])  # type: ignore[arg-type]
        ids = encoded(self.tokenizer, self.texts[len(self.sampled)])
        self.sampled.append(ids)
        return [
            Completion(
                index=0,
                token_ids=np.array(ids, np.int32),
                logprobs=np.zeros(len(ids), np.float32),
                versions=(VersionSpan(0, len(ids)),),
                finish_reason=FinishReason.STOP,
                router_trace=None,
                text=self.tokenizer.decode(ids, skip_special_tokens=True),
            )
        ]


async def play(policy: Says, kind: Any, form: str = "auto") -> tuple[pb.TrajectoryGroup, list[str]]:
    """The group, and what each turn was given to read beyond what was read and said before."""
    chat, _ = chat_of(policy.tokenizer.chat_template)
    player = Player(
        policy,
        {kind.name: Configured(kind.name, kind, kind.Settings())},
        Rendering(policy.tokenizer, chat),
        EpisodeLimits(),
        max_model_len=4096,
        max_tokens=2000,
        parser=make_parser(form, policy.tokenizer.chat_template),
    )
    prompt = pb.Prompt(prompt_id="p", environment=kind.name)
    prompt.messages.add(role=pb.ROLE_USER, content="6 * 7?")
    group = await player.play(prompt, return_router=False)
    given = []
    for before, sampled, after in zip(policy.prompts, policy.sampled, policy.prompts[1:], strict=False):
        assert after[: len(before) + len(sampled)] == before + sampled, "nothing is tokenized twice"
        given.append(policy.tokenizer.decode(after[len(before) + len(sampled) :], skip_special_tokens=False))
    (trajectory,) = map(wire.decode_trajectory, group.trajectories)
    last = policy.prompts[-1][len(policy.prompts[0]) :] + policy.sampled[-1]
    assert trajectory.token_ids.tolist() == last
    return group, given


def answering(role: Role) -> Any:
    async def answer(action: Action, turn: int) -> Step:
        if turn == 2:
            return Step(reward=1.0, is_done=True)
        return Step(MessagesObservation((Message(role, ("42é", "no")[turn]),)))

    return scripted(answer)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("ends", [True, False], ids=["ended", "cut"])
async def test_three_turns_by_the_template_of_a_family(name: str, ends: bool) -> None:
    form: Form = FORMS[name]
    chat, tokenizer = chat_of(form.template)
    contents = ["look(42)", "look(é)", "It is 42."]
    policy = Says(tokenizer, [form.starts + content + form.end * ends for content in contents])
    await play(policy, answering(Role(form.tool)))
    # The harmony form has its channel in special tokens, which the text of a turn leaves out.
    messages: list[dict[str, str]] = [{"role": "user", "content": "6 * 7?"}]
    for content, answer in zip(contents, ("42é", "no"), strict=False):
        messages += [{"role": "assistant", "content": content}, {"role": form.tool, "content": answer}]
    assert tokenizer.decode(policy.prompts[-1], skip_special_tokens=False) == chat.render(messages)


async def test_thoughts_that_the_template_would_leave_out_stay() -> None:
    _, tokenizer = chat_of(WITHOUT_THOUGHTS)
    policy = Says(tokenizer, [f"<think>t{turn}</think>a{turn}<|im_end|>" for turn in range(3)])
    _, given = await play(policy, answering(Role.USER))
    assert given == [f"\n<|im_start|>user\n{answer}<|im_end|>\n<|im_start|>assistant\n" for answer in ("42é", "no")]


def look(what: str) -> str:
    """Looks."""
    return f"{what} is there"


class Looks(ToolEnvironment):
    name = "looks"
    version = "1"
    description = "looks"
    functions = (look,)

    async def finish(self, action: Action) -> Step:
        return Step(reward=1.0, is_done=True)


async def test_tools_by_the_template_of_qwen() -> None:
    _, tokenizer = chat_of(QWEN_TOOLS)
    call = '<tool_call>\n{"name": "look",  "arguments": {"what": "42"}}\n</tool_call>'
    policy = Says(
        tokenizer, [f"I look.\n{call}\n{call}<|im_end|>", f"{call[:-14]}</tool_call><|im_end|>", "42<|im_end|>"]
    )
    _, given = await play(policy, Looks, "hermes")
    begins, ends = "\n<|im_start|>user", "<|im_end|>\n<|im_start|>assistant\n"
    response = "\n<tool_response>\n{}\n</tool_response>"
    assert given[0] == begins + response.format("42 is there") * 2 + ends
    assert given[1].startswith(begins + "\n<tool_response>\nError: the call is no JSON")
    first = tokenizer.decode(policy.prompts[0], skip_special_tokens=False)
    assert '"name": "look"' in first


async def test_tools_by_the_template_of_harmony() -> None:
    _, tokenizer = chat_of(HARMONY_TOOLS)
    thought = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    call = ' to=functions.look<|channel|>commentary json<|message|>{"what": "42"}<|call|>'
    policy = Says(tokenizer, [thought + call, call, "<|channel|>final<|message|>42<|return|>"])
    _, given = await play(policy, Looks)
    output = (
        '<|start|>functions.look to=assistant<|channel|>commentary<|message|>"42 is there"<|end|><|start|>assistant'
    )
    assert given == [output, output]


async def test_a_template_that_takes_no_output_of_a_tool_fails_the_episode() -> None:
    refuses = "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}"
    _, tokenizer = chat_of(f"{{% for m in messages %}}{refuses}{{% endfor %}}")
    with pytest.raises(EpisodeFailedError, match=r"environment scripted: an observation: .*no tools"):
        await play(Says(tokenizer, ["42"]), answering(Role.TOOL))
