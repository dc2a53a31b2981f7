"""The gRPC door of generation."""

from collections.abc import AsyncIterator
from dataclasses import replace

from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.engines.base import Engine
from services.generation.requests import Requests
from services.generation.weights import WeightsLoader
from shared import wire
from shared.errors import UnavailableError
from shared.trajectory import Completion


class GenerationServicer(gen_grpc.GenerationServiceServicer):
    """Answers UNAVAILABLE until `open` has given it an engine."""

    def __init__(self) -> None:
        self._ready: tuple[Engine, Requests, WeightsLoader] | None = None

    def open(self, engine: Engine, requests: Requests, loader: WeightsLoader) -> None:
        self._ready = engine, requests, loader

    async def Generate(
        self,
        request: gen.GenerateRequest,
        context: object,
    ) -> gen.GenerateResponse:
        engine, requests, _ = self._parts()
        with metrics.counted("Generate"):
            prompt = requests.prompt(request)
            completions = await engine.generate(prompt, requests.sampling(prompt, request.sampling))
        return gen.GenerateResponse(
            completions=[_encode(c, requests, request.return_router) for c in completions], prompt_tokens=len(prompt)
        )

    async def GenerateStream(
        self,
        request: gen.GenerateStreamRequest,
        context: object,
    ) -> AsyncIterator[gen.GenerateStreamResponse]:
        engine, requests, _ = self._parts()
        inner = request.request
        with metrics.counted("GenerateStream"):
            prompt = requests.prompt(inner)
            async for piece in engine.stream(prompt, requests.sampling(prompt, inner.sampling)):
                yield gen.GenerateStreamResponse(delta=_encode(piece, requests, inner.return_router))

    async def GetStatus(
        self, request: gen.GenerationServiceGetStatusRequest, context: object
    ) -> gen.GenerationServiceGetStatusResponse:
        engine, _, _ = self._parts()
        info = engine.info
        return gen.GenerationServiceGetStatusResponse(
            engine=info.engine,
            model=info.model,
            version=engine.version,
            max_model_len=info.max_model_len,
            running_requests=engine.load.running,
            router_layout=wire.encode_layout(info.router_layout) if info.router_layout else None,
        )

    async def UpdateWeights(self, request: gen.UpdateWeightsRequest, context: object) -> gen.UpdateWeightsResponse:
        _, _, loader = self._parts()
        with metrics.counted("UpdateWeights"):
            seconds = await loader.load(request.manifest)
        return gen.UpdateWeightsResponse(version=request.manifest.version, seconds=seconds)

    def _parts(self) -> tuple[Engine, Requests, WeightsLoader]:
        if self._ready is None:
            raise UnavailableError("the model is still loading; try again when the health check says SERVING")
        return self._ready


def _encode(completion: Completion, requests: Requests, return_router: bool) -> pb.Completion:
    trace = completion.router_trace if return_router else None
    return wire.encode_completion(replace(completion, text=requests.text(completion), router_trace=trace))
