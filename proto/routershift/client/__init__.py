"""Clients of generation, environments and reward, for your own code.

    from routershift.client import GenerationClient

    with GenerationClient("127.0.0.1:50051") as generation:
        (completion,) = generation.generate("3,7,5:26=", max_tokens=16)

`GenerationClient`, `EnvironmentClient` and `RewardClient` block, for scripts and notebooks. `AsyncGenerationClient`,
`AsyncEnvironmentClient` and `AsyncRewardClient` are the same for many calls at once, as a batch of prompts needs
them. Errors are those of `routershift.errors`, with the gRPC status of the call. `pip install routershift` brings all
that they need.
"""

from routershift.client.asynchronous import AsyncEnvironmentClient, AsyncGenerationClient, AsyncRewardClient
from routershift.client.blocking import EnvironmentClient, GenerationClient, RewardClient
from routershift.client.credentials import Access
from routershift.client.requests import Message, Prompt, Response, Sampling
from routershift.trajectory import Completion

__all__ = [
    "Access",
    "AsyncEnvironmentClient",
    "AsyncGenerationClient",
    "AsyncRewardClient",
    "Completion",
    "EnvironmentClient",
    "GenerationClient",
    "Message",
    "Prompt",
    "Response",
    "RewardClient",
    "Sampling",
]
