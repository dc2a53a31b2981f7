"""The programs of docs/how-to/call-generation.md, against a service, where only the library is installed."""

import asyncio
import sys
from pathlib import Path

from shared.streams.run import Run
from tests.support.generation import generation_server
from tests.support.models import save_model
from tests.support.pages import blocks

ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"services", "shared", "redis", "torch", "transformers", "prometheus_client"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
MOST_LINES = 15


async def test_the_programs_of_the_page_run(run: Run, repository: Path, tmp_path: Path) -> None:
    page = repository / "docs/how-to/call-generation.md"
    first, many = (text for language, _, text in blocks(page) if language == "python")
    assert len(first.strip().splitlines()) < MOST_LINES
    async with generation_server(run, tmp_path, save_model(tmp_path / "model")) as address:
        out = await said(first, address)
        assert "VersionSpan(version=0" in out
        assert "float16" in out
        assert "INVALID_ARGUMENT Generate: sampling.max_tokens is 1000000; allowed: " in out
        assert (await said(many, address)).startswith("[")


async def said(program: str, address: str) -> str:
    assert "127.0.0.1:50051" in program
    caller = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        ALONE + program.replace("127.0.0.1:50051", address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(caller.communicate(), 60)
    assert caller.returncode == 0, err.decode()
    return out.decode()
