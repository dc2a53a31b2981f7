"""What bounds an episode."""

from typing import Literal

from pydantic import Field

from shared.table import Table


class EpisodeLimits(Table):
    """Bounds of each episode. What the model may sample in all its turns together is rollout.max_tokens."""

    turns: int = Field(32, ge=1, description="turns of the model in one episode, at most")
    observation_tokens: int = Field(
        4096, ge=1, description="tokens of one observation; an environment that gives more has failed"
    )
    turn_seconds: float = Field(
        60.0, gt=0, description="deadline of an environment: to begin an episode, and to answer each turn"
    )
    episode_seconds: float = Field(
        1800.0, gt=0, description="deadline of an episode, from its beginning to the end of its last turn"
    )
    tool_calls: Literal["auto", "hermes", "harmony", "deepseek", "qwen3_coder", "glm"] = Field(
        "auto",
        description="form in which the model writes calls of tools: that of Hermes and Qwen, of GPT-OSS, of DeepSeek, "
        'of Qwen3-Coder, or of GLM; "auto": the one that its chat template shows',
    )
    attempts: int = Field(
        3,
        ge=1,
        description="plays of a group whose episodes fail, before it is dropped; and samplings of one turn that new "
        "weights cut (generation.update_policy = 'abort')",
    )
