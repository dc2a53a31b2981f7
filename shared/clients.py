"""Clients of the services, for people and for the curriculum: numpy in and out, no channels in sight.

async with GenerationClient("localhost:50051") as generation:
    completions = await generation.generate("3 5 7 = 22 :", n=4, return_router=True)
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self, TypedDict, Unpack

import grpc
import numpy as np
from google.protobuf.struct_pb2 import Struct
from numpy.typing import NDArray

from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import learner_pb2 as lrn
from routershift.v1 import learner_pb2_grpc as lrn_grpc
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import reward_pb2_grpc as rew_grpc
from routershift.v1 import trajectory_pb2 as pb
from shared import wire
from shared.errors import InvalidInputError
from shared.rpc.channel import open_channel, raise_typed
from shared.rpc.credentials import Bearer
from shared.settings import AccessSettings
from shared.trajectory import Completion


class Sampling(TypedDict, total=False):
    """The fields of SamplingParams."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    seed: int
    logprobs: int


class Message(TypedDict):
    """One message of a conversation."""

    role: str
    content: str


# Text, token ids, or a conversation for the model's chat template.
Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Sequence[Message]


class _Client:
    """Opens the channel with the block and closes it after. Every call has a deadline and typed errors.

    A token that the server does not know, or that is not for the method, raises `UnauthenticatedError` or
    `ForbiddenError`, both of them PreconditionErrors.
    """

    def __init__(self, target: str, timeout: float = 60.0, access: AccessSettings | None = None) -> None:
        """Args: target: host:port, or dns:///name:port for all replicas. timeout: seconds for each call. access: the
        certificates and the token for it; default: clear text and none.
        """
        self._bearer = Bearer(access or AccessSettings())
        self._channel = open_channel(target, access)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout, metadata=self._bearer.metadata(), wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise_typed(error, type(request).__name__.removesuffix("Request"))


class GenerationClient(_Client):
    """Samples from the policy that serves now."""

    def __init__(self, target: str, timeout: float = 60.0, access: AccessSettings | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = gen_grpc.GenerationServiceStub(self._channel)

    async def generate(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        """n complete responses, in order of index.

        Args:
            prompt: text, token ids, or a conversation as [{"role": "user", "content": "..."}, ...].
            return_router: with the experts of each token, as full as the service's setting router_export says.
            sampling: fields of SamplingParams; those left out take the service's defaults.

        Raises:
            InvalidInputError: a parameter out of range, or a prompt too long; the message names it.
            PreconditionError: the service exports no routers, or its model has no chat template.
            OverloadedError, UnavailableError, DeadlineError: the service cannot answer now, retries included.
        """
        response = await self._call(self._stub.Generate, _request(prompt, return_router, sampling))
        return [wire.decode_completion(c) for c in response.completions]

    async def stream(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Completion]:
        """Pieces of the responses as they are sampled, those of n samples interleaved; see `generate`.

        A sample's last piece has its finish_reason and the router trace of the whole sample. Leaving the loop cancels
        the request.
        """
        request = gen.GenerateStreamRequest(request=_request(prompt, return_router, sampling))
        call = self._stub.GenerateStream(
            request, timeout=self._timeout, metadata=self._bearer.metadata(), wait_for_ready=True
        )
        seen: Counter[int] = Counter()
        try:
            async for response in call:
                piece = wire.decode_completion(response.delta, seen[response.delta.index])
                seen[piece.index] += piece.token_ids.size
                yield piece
        except grpc.aio.AioRpcError as error:
            raise_typed(error, "GenerateStream")
        finally:
            call.cancel()

    async def status(self) -> gen.GenerationServiceGetStatusResponse:
        response: gen.GenerationServiceGetStatusResponse = await self._call(
            self._stub.GetStatus, gen.GenerationServiceGetStatusRequest()
        )
        return response

    async def update_weights(self, manifest: pb.WeightsManifest) -> gen.UpdateWeightsResponse:
        """Raises PreconditionError for a version not above the serving one, CorruptDataError for a wrong checksum."""
        response: gen.UpdateWeightsResponse = await self._call(
            self._stub.UpdateWeights, gen.UpdateWeightsRequest(manifest=manifest)
        )
        return response


class RewardClient(_Client):
    """Scores responses with a named verifier."""

    def __init__(self, target: str, timeout: float = 60.0, access: AccessSettings | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = rew_grpc.RewardServiceStub(self._channel)

    async def score(
        self, verifier: str, prompt: str, responses: Sequence[str | Completion], reference: Mapping[str, Any]
    ) -> list[pb.Score]:
        """One Score a response, in order. Look at `outcome` before `reward`.

        Args:
            responses: texts, or completions, whose special tokens go along.
            reference: JSON values, in the form of the verifier's `reference_schema`.

        Raises:
            NotFoundError: no verifier of that name.
            InvalidInputError: a reference that JSON does not have.
        """
        try:
            struct = wire.encode_struct(reference)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"reference is {str(reference)[:200]}; expected JSON values ({error})") from None
        items = [_score_item(prompt, response, struct) for response in responses]
        answer = await self._call(self._stub.Score, rew.ScoreRequest(verifier=verifier, items=items))
        return list(answer.scores)


def _score_item(prompt: str, response: str | Completion, reference: Struct) -> rew.ScoreItem:
    if isinstance(response, str):
        return rew.ScoreItem(prompt=prompt, response=response, reference=reference)
    return rew.ScoreItem(
        prompt=prompt,
        response=response.text,
        reference=reference,
        special_tokens=wire.encode_special_tokens(response.special_tokens),
    )


class LearnerClient(_Client):
    """Watches and steers the learner."""

    def __init__(self, target: str, timeout: float = 60.0, access: AccessSettings | None = None) -> None:
        super().__init__(target, timeout, access)
        self._stub = lrn_grpc.LearnerServiceStub(self._channel)

    async def status(self) -> lrn.LearnerServiceGetStatusResponse:
        response: lrn.LearnerServiceGetStatusResponse = await self._call(
            self._stub.GetStatus, lrn.LearnerServiceGetStatusRequest()
        )
        return response

    async def checkpoint(self) -> lrn.CheckpointResponse:
        """Returns when a checkpoint of the step in progress is durable."""
        response: lrn.CheckpointResponse = await self._call(self._stub.Checkpoint, lrn.CheckpointRequest())
        return response

    async def pause(self) -> int:
        """No step begins after this; returns the steps done once the step in progress has ended.

        Raises:
            DeadlineError: the step takes longer than `timeout`; the learner is paused all the same.
        """
        response = await self._call(self._stub.Pause, lrn.PauseRequest())
        return int(response.step)

    async def resume(self) -> int:
        response = await self._call(self._stub.Resume, lrn.ResumeRequest())
        return int(response.step)


def _request(prompt: Prompt, return_router: bool, sampling: Sampling) -> gen.GenerateRequest:
    if isinstance(stop := sampling.get("stop"), str):
        sampling = {**sampling, "stop": [stop]}  # a string is a sequence too, of its characters
    try:
        parameters = pb.SamplingParams(**sampling)
    except (TypeError, ValueError) as error:
        known = ", ".join(field.name for field in pb.SamplingParams.DESCRIPTOR.fields)
        raise InvalidInputError(f"sampling {sampling}: {error}; the parameters are {known}") from None
    request = gen.GenerateRequest(sampling=parameters, return_router=return_router)
    try:
        _fill(request, prompt)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"prompt of type {type(prompt).__name__}: {error}; expected text, token ids or messages of role and content"
        ) from None
    return request


def _fill(request: gen.GenerateRequest, prompt: Any) -> None:
    if isinstance(prompt, str):
        request.text = prompt
    elif len(prompt) > 0 and isinstance(prompt[0], Mapping):
        request.chat.messages.extend(gen.ChatMessage(**message) for message in prompt)
    else:
        request.token_ids.ids.extend(prompt.tolist() if isinstance(prompt, np.ndarray) else prompt)
