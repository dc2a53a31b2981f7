"""The generation service as callers meet it: on a port of its own, with the torch engine and a tiny model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from services.generation.service import GenerationService
from services.generation.settings import GenerationSettings, Settings
from shared.process.service import Service
from shared.rpc.server import Server
from shared.settings import RunSettings
from shared.streams.run import Run
from tests.support.models import EOS, build_tokenizer, save_model

PROMPT = "3,7,5:26="
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<eos>{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


def save_chat_model(folder: Path, **changes: Any) -> Path:
    """A model whose tokenizer has a chat template, and begins a text with a special token; see `save_model`."""
    save_model(folder, **changes)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<eos> $A", special_tokens=[("<eos>", EOS)])
    tokenizer.save_pretrained(folder)
    return folder


async def serve(service: Service, run: Run) -> tuple[Server, str]:
    """Starts it; gives the server and its address."""
    server = Server()
    names = service.register(server)
    port = await server.listen("127.0.0.1", 0, names)
    await service.start(run)
    await server.serving()
    return server, f"127.0.0.1:{port}"


@asynccontextmanager
async def generation_server(run: Run, folder: Path, model: Path | None = None, **settings: Any) -> AsyncIterator[str]:
    """The address of a service.

    Args:
        folder: of the run.
        model: its folder; None makes one.
        settings: of the table [generation].
    """
    tables = Settings(
        run=RunSettings(id="contract", folder=folder, model=model or save_model(folder / "model")),
        generation=GenerationSettings(**({"engine": "torch", "max_tokens": 8} | settings)),
    )
    service = GenerationService(tables)
    server, address = await serve(service, run)
    try:
        yield address
    finally:
        await server.stop(0)
        await service.close()
