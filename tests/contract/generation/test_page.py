"""The program of docs/how-to/call-generation.md, against a service."""

import asyncio
import sys
from pathlib import Path

from shared.streams.run import Run
from tests.support.generation import generation_server
from tests.support.models import save_model
from tests.support.pages import blocks


async def test_the_program_of_the_page_runs(run: Run, repository: Path, tmp_path: Path) -> None:
    (program,) = (
        text for language, _, text in blocks(repository / "docs/how-to/call-generation.md") if language == "python"
    )
    assert "127.0.0.1:50051" in program
    async with generation_server(run, tmp_path, save_model(tmp_path / "model")) as address:
        caller = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program.replace("127.0.0.1:50051", address),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(caller.communicate(), 60)
    assert caller.returncode == 0, err.decode()
    assert "VersionSpan(version=0" in out.decode()
    assert "float16" in out.decode()
