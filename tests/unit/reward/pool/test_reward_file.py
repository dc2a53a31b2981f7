"""A reward file that uses too much, or ends its process: the message names file, function and setting."""

from pathlib import Path

from services.reward.outcomes import Outcome
from services.reward.pool.pool import Pool
from services.reward.verifiers.base import Item
from services.reward.verifiers.file.verifier import FileSettings, FileVerifier

SOURCE = """import os, signal, subprocess, time

def grade(response):
    if response == "memory":
        bytearray(3 << 30)
    if response == "threads":
        raise RuntimeError("can't start new thread")
    if response == "write":
        while True:
            os.write(1, b"x" * (1 << 20))
    if response == "child":
        subprocess.run(["head", "-c", "200000", "/dev/zero"])
    if response == "abort":
        os.abort()
    if response == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "exit":
        os._exit(3)
    if response == "sleep":
        time.sleep(60)
    return 1.0
"""
REFUSED = "[Errno 1] Operation not permitted"
MEMORY = "its process may allocate reward.memory_mb = 512: allocate less, or raise it"
PRINTED = "it printed more than 64 KiB for one item; print less, or raise reward.printed_kb"


async def test_what_a_function_did_to_its_process_names_file_function_and_setting(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    place = f"{file}: grade"
    expected = {
        "memory": f"{file}:5: grade raises MemoryError; {MEMORY} (reference: None)",
        "threads": f"{file}:7: grade raises RuntimeError: can't start new thread; {MEMORY} (reference: None)",
        "write": f"{file}:10: grade raises PermissionError: {REFUSED} (reference: None); {PRINTED}",
        "child": f"{place}: {PRINTED}",
        "abort": (
            f"{place}: its process ended with signal 6 (SIGABRT), as libraries end that find no more memory: it may "
            "allocate reward.memory_mb = 512"
        ),
        "crash": f"{place}: its process ended with signal 11 (SIGSEGV)",
        "exit": f"{place}: its process ended with exit code 3",
        "sleep": f"{place}: none within 5 s; make it faster, or raise reward.verifiers.mine.timeout_seconds",
    }
    verifier = FileVerifier(FileSettings(file=file, function="grade"))
    verifier.check()
    pool = Pool("mine", verifier, processes=1, timeout_seconds=5.0, memory_mb=512, printed_kb=64)
    await pool.start()
    try:
        scored = await pool.judge([Item("", response, {}) for response in expected])
        (well,) = await pool.judge([Item("", "ok", {})])
    finally:
        await pool.close()
    assert [each.error for each in scored] == list(expected.values())
    assert [each.outcome for each in scored] == [Outcome.FAILED] * 7 + [Outcome.TIMED_OUT]
    assert well.outcome is Outcome.SCORED
