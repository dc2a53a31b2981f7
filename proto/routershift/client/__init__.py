"""Clients of the generation and the reward service, for your own code.

    from routershift.client import GenerationClient

    with GenerationClient("127.0.0.1:50051") as generation:
        (completion,) = generation.generate("3,7,5:26=", max_tokens=16)

`GenerationClient` and `RewardClient` block, for scripts and notebooks; `AsyncGenerationClient` and `AsyncRewardClient`
are the same for many calls at once, as a batch of prompts needs them. Errors are those of `routershift.errors`, with
the gRPC status of the call. `pip install routershift` brings all that they need.
"""

from routershift.client.asynchronous import AsyncGenerationClient, AsyncRewardClient
from routershift.client.blocking import GenerationClient, RewardClient
from routershift.client.credentials import Access
from routershift.client.requests import Message, Prompt, Response, Sampling
from routershift.trajectory import Completion

__all__ = [
    "Access",
    "AsyncGenerationClient",
    "AsyncRewardClient",
    "Completion",
    "GenerationClient",
    "Message",
    "Prompt",
    "Response",
    "RewardClient",
    "Sampling",
]
