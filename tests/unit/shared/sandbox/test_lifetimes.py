"""Sandboxes and their owner: one job each, gone with it, replaced when lost; and what is left without isolation."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shared.sandbox.sandbox import Sandboxes, SandboxLostError, SandboxSettings
from tests.support.sandboxes import LIMITS, answers, run


@pytest.mark.parametrize("isolated", [True, False])
def test_a_lost_fork_server_is_replaced(sandboxes: Sandboxes, isolated: bool) -> None:
    own = Sandboxes(SandboxSettings(LIMITS, isolated), 1)
    try:
        for _ in range(3):
            own._server.kill()
            own._server.wait()
            assert run(own, "print(1)") == ("1\n", "exit", 0)
        with own.take() as sandbox:
            sandbox.give(["programs", "import time\ntime.sleep(60)", "main.py", [], False])
            own._server.kill()
            own._server.wait()
            with pytest.raises(SandboxLostError):
                sandbox.take(sandbox.clock())
        assert not own.alive
        assert run(own, "print(1)") == ("1\n", "exit", 0)
    finally:
        own.close()


def test_a_sandbox_takes_one_job_and_is_gone(sandboxes: Sandboxes) -> None:
    with sandboxes.take() as sandbox:
        answers(sandbox, "print(1)", "")
        with pytest.raises(SandboxLostError):
            answers(sandbox, "print(2)", "")
    assert sandbox.gone(5)


def test_it_dies_with_its_owner(sandboxes: Sandboxes) -> None:
    """However the owner dies, and whatever the program does then."""
    script = (
        "import psutil\nfrom shared.sandbox.inside.limits import Limits\n"
        "from shared.sandbox.sandbox import Sandboxes, SandboxSettings\n"
        "sandboxes = Sandboxes(SandboxSettings(Limits(160, 8, 4, 64, 60.0)), 1)\n"
        "sandbox = sandboxes.take()\n"
        "program = 'import os, time\\nos.fork()\\nos.fork()\\ntime.sleep(60)'\n"
        "sandbox.give(['programs', program, 'main.py', [], False])\n"
        "sandbox.give([''])\n"
        "sandboxes._waiting[0].wait()\n"
        "me = psutil.Process()\n"
        "while len(me.children(recursive=True)) < 9: pass\n"  # the server, two in each sandbox, four of the program
        "print(*(p.pid for p in me.children(recursive=True)), flush=True)\n"
        "import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        children = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        assert len(children) == 9
        owner.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert (len(gone), alive) == (9, [])


def test_without_isolation_processes_are_still_killed_and_the_scratch_goes() -> None:
    open_sandboxes = Sandboxes(SandboxSettings(LIMITS, isolated=False), 1)
    try:
        output, end, code = run(open_sandboxes, "import os, time\nprint(os.getcwd())\nif not os.fork(): time.sleep(60)")
        with open_sandboxes.take() as sandbox:
            sandbox.give(["programs", "import time\nprint(1, flush=True)\ntime.sleep(60)", "main.py", [], False])
            sandbox.give([""])
            server = psutil.Process(open_sandboxes._server.pid)
            running = [server, *server.children(recursive=True)]
    finally:
        open_sandboxes.close()
    assert (end, code) == ("exit", 0)
    assert not Path(output.strip()).exists()
    assert not any(process.is_running() for process in running)


def test_where_namespaces_are_refused_there_is_no_sandbox() -> None:
    script = (
        "from shared.sandbox.inside import limits, seccomp\n"
        "from shared.sandbox.sandbox import Sandboxes, SandboxSettings\n"
        "from shared.errors import PreconditionError\n"
        "limits.drop_privileges()\nseccomp.forbid()\n"  # unshare is among them
        "try:\n    Sandboxes(SandboxSettings(limits.Limits(160, 8, 4, 64, 1.0)), 1)\n"
        "except PreconditionError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "programs cannot be isolated here (" in done.stdout
    assert 'isolation = "none"' in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_an_ordinary_user_has_it_too(repository: Path) -> None:
    """With this interpreter and this code where that user can read them."""
    if not (shutil.which("setpriv") and shutil.which("unshare")):
        pytest.skip("no setpriv or unshare on this machine")
    script = (
        "import os\nfrom shared.sandbox.inside.limits import Limits\n"
        "from shared.sandbox.sandbox import Sandboxes, SandboxSettings\n"
        "sandboxes = Sandboxes(SandboxSettings(Limits(160, 8, 4, 64, 5.0)), 1)\n"
        "with sandboxes.take() as sandbox:\n"
        "    clock = sandbox.clock()\n"
        "    program = 'import os\\nif os.fork(): os.wait()\\nprint(os.getuid())'\n"
        "    sandbox.give(['programs', program, 'main.py', [], False])\n"
        "    sandbox.give([''])\n"
        "    print(os.getuid(), sandbox.take(clock))\n"
        "sandboxes.close()"
    )
    shell = (
        "mount -t tmpfs none /mnt && mkdir /mnt/python /mnt/code && mount --bind $0 /mnt/python && "
        "mount --bind $1 /mnt/code && cd /mnt && PYTHONPATH=/mnt/code:/mnt/code/proto exec setpriv "
        '--reuid 65534 --regid 65534 --clear-groups /mnt/python/bin/python3 -c "$2"'
    )
    command = ["unshare", "--mount", "sh", "-c", shell, sys.base_prefix, str(repository), script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "cannot be isolated" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout == "65534 ['run', '1000\\n1000\\n', 'exit', 0]\n", done.stderr
