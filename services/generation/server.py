"""The gRPC methods of generation."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from routershift import wire
from routershift.client.status import MAX_MESSAGE_BYTES
from routershift.trajectory import Completion, RouterExport
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.admission import admit
from services.generation.engines.base import Engine, EngineSampling
from services.generation.requests.validation import Requests
from services.generation.routes import as_exported
from services.generation.settings import GenerationSettings
from services.generation.weights.loader import WeightsLoader
from shared.errors import InvalidInputError, PreconditionError, UnavailableError
from shared.models.detokenizer import TextStream
from shared.rpc.server import begin


class GenerationServicer(gen_grpc.GenerationServiceServicer):
    """Answers UNAVAILABLE until `open` has given it an engine."""

    def __init__(self, settings: GenerationSettings | None = None) -> None:
        self._settings = settings or GenerationSettings()
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
            prompt, sampling = await self._accept(request)
            await begin(context)
            completions = [
                self._routed(completion, request.return_router)
                for completion in await engine.generate(prompt, sampling)
            ]
            encoded = [wire.encode_completion(requests.with_text(c)) for c in completions]
            _require_fits(encoded)
            metrics.count_tokens(prompt, completions)
            metrics.count_router_bytes(encoded)
        return gen.GenerateResponse(completions=encoded, prompt_tokens=len(prompt))

    async def GenerateStream(
        self,
        request: gen.GenerateStreamRequest,
        context: object,
    ) -> AsyncIterator[gen.GenerateStreamResponse]:
        engine, requests, _ = self._parts()
        texts: dict[int, TextStream] = {}
        latency = metrics.Latency()
        with metrics.counted("GenerateStream"):
            prompt, sampling = await self._accept(request.request)
            await begin(context)
            metrics.count_tokens(prompt, [])
            async for each in engine.stream(prompt, sampling):
                piece = self._routed(each, request.request.return_router)
                metrics.count_tokens([], [piece])
                latency.observe(piece.index, piece.token_ids.size)
                decoder = texts.setdefault(piece.index, requests.text_stream())
                text = decoder.add(piece.token_ids.tolist(), last=piece.finish_reason is not None)
                delta = wire.encode_completion(replace(piece, text=text))
                _require_fits([delta])
                metrics.count_router_bytes([delta])
                yield gen.GenerateStreamResponse(delta=delta)

    async def GetStatus(
        self, request: gen.GenerationServiceGetStatusRequest, context: object
    ) -> gen.GenerationServiceGetStatusResponse:
        engine, _, _ = self._parts()
        info, load = engine.info, engine.load
        return gen.GenerationServiceGetStatusResponse(
            engine=info.engine,
            model=info.model,
            version=engine.version,
            max_model_len=info.max_model_len,
            running_requests=load.running,
            waiting_requests=load.waiting,
            kv_cache_usage=load.kv_cache_usage,
            router_layout=wire.encode_layout(info.router_layout) if info.router_layout else None,
            router_export=wire.ROUTER_EXPORT_CODES[self._settings.router_export],
            eos_token_ids=info.eos_token_ids,
        )

    async def UpdateWeights(self, request: gen.UpdateWeightsRequest, context: object) -> gen.UpdateWeightsResponse:
        _, _, loader = self._parts()
        with metrics.counted("UpdateWeights"):
            await begin(context)
            seconds = await loader.load_announced(request.manifest)
        return gen.UpdateWeightsResponse(version=request.manifest.version, seconds=seconds)

    async def _accept(self, request: gen.GenerateRequest) -> tuple[list[int], EngineSampling]:
        """The request in the engine's terms, if it is well-formed and there is room for it."""
        engine, requests, _ = self._parts()
        if request.return_router and self._settings.router_export is RouterExport.NONE:
            raise PreconditionError(
                "return_router is true, and generation.router_export is none; set that to ids, topk or full"
            )
        prompt = await requests.prompt(request)
        sampling = requests.sampling(prompt, request.sampling)
        admit(engine.load, sampling.n, self._settings)
        return prompt, sampling

    def _routed(self, completion: Completion, return_router: bool) -> Completion:
        if return_router:
            return as_exported(completion, self._settings)
        return replace(completion, router_trace=None)

    def _parts(self) -> tuple[Engine, Requests, WeightsLoader]:
        if self._ready is None:
            raise UnavailableError("the model is still loading; try again when the health check says SERVING")
        return self._ready


def _require_fits(encoded: Sequence[pb.Completion]) -> None:
    """Raises InvalidInputError, with what to change, before the guard would refuse the message in general terms."""
    size = sum(completion.ByteSize() for completion in encoded)
    if size > MAX_MESSAGE_BYTES:
        raise InvalidInputError(
            f"sampling.n and sampling.max_tokens make an answer of {size} bytes; allowed: {MAX_MESSAGE_BYTES} in one "
            "message: ask for fewer samples, for no router, or for a stream"
        )
