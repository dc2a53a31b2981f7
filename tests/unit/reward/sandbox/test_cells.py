"""Attacks on the sandbox. Each is stopped, each comes out as data, and nothing of it is left."""

import os
import socket
from pathlib import Path

import pytest

from services.reward.sandbox.cells import Cells
from tests.support.cells import run


@pytest.mark.parametrize(
    ("program", "ends"),
    [
        pytest.param("import os\nwhile True:\n    os.fork()", {"exit", "time"}, id="fork bomb"),
        pytest.param(
            "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
            {"time"},
            id="patient fork bomb",
        ),
        pytest.param(
            "import os\nfor _ in range(100000):\n    if not os.fork():\n        os._exit(0)",
            {"exit"},
            id="zombie swarm",
        ),
        pytest.param(
            "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()",
            {"exit", "time"},
            id="thread bomb",
        ),
        pytest.param("x = bytearray(10**10)", {"exit"}, id="memory bomb"),
        pytest.param("x = []\nwhile True:\n    x.append(bytearray(1 << 20))", {"exit"}, id="slow memory bomb"),
        pytest.param("print(10 ** 10 ** 10)", {"time", "exit"}, id="giant number"),
        pytest.param("while True:\n    print('spam' * 100)", {"output"}, id="infinite output"),
        pytest.param("while True:\n    pass", {"time"}, id="infinite loop"),
        pytest.param("import time\ntime.sleep(60)", {"time"}, id="sleep"),
        pytest.param(
            "import signal\nfor n in (1, 2, 3, 15, 24):\n    signal.signal(n, signal.SIG_IGN)\nwhile True:\n    pass",
            {"time", "signal"},
            id="deaf to signals",
        ),
        pytest.param("import ctypes\nctypes.string_at(0)", {"signal"}, id="segmentation fault"),
        pytest.param(
            "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()",
            {"signal", "exit", "time"},
            id="recursion",
        ),
        pytest.param("open('big', 'wb').write(bytes(100 << 20))", {"exit"}, id="huge file"),
        pytest.param(
            "for i in range(100):\n    with open(str(i), 'wb') as f:\n        f.write(bytes(1 << 20))",
            {"exit"},
            id="many files",
        ),
        pytest.param("for i in range(100000):\n    open(str(i), 'w').close()", {"exit"}, id="many names"),
        pytest.param("import os\nos.kill(os.getpid(), 9)", {"signal"}, id="suicide"),
        pytest.param("import os\nos.abort()", {"signal"}, id="abort"),
        pytest.param("raise SystemExit(3)", {"exit"}, id="exit code"),
    ],
)
def test_what_takes_too_much_ends_badly_and_in_time(cells: Cells, program: str, ends: set[str]) -> None:
    _, end, code = run(cells, program)
    assert end in ends
    assert (end, code) != ("exit", 0)


def test_what_outlives_its_parent_is_killed_and_not_waited_for(cells: Cells) -> None:
    program = (
        "import os, time\n"
        "if not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(60)\n    os._exit(0)\n"
        "print('done')"
    )
    with cells.take() as cell:
        cell.give(["programs", program, "main.py", [], ["", ""]])
        assert cell.take() == ["run", "done\n", "exit", 0]
        assert cell.take() == ["run", "done\n", "exit", 0]
    assert cell.gone(5)


@pytest.mark.parametrize(
    ("attempt", "errors"),
    [
        # Files and processes of the host
        ("open('/etc/passwd')", {"FileNotFoundError"}),
        ("open('/proc/self/environ')", {"FileNotFoundError"}),
        ("open('/proc/1/mem')", {"FileNotFoundError"}),
        ("os.listdir('/home')", {"FileNotFoundError"}),
        ("os.listdir('/run')", {"FileNotFoundError"}),
        ("os.listdir('/sys')", {"FileNotFoundError"}),
        (f"os.listdir({str(Path(__file__).parent)!r})", {"FileNotFoundError", "PermissionError"}),
        # Writing outside of the scratch
        ("open('/x', 'w')", {"OSError"}),
        ("open('/dev/x', 'w')", {"OSError"}),
        ("open('/usr/x', 'w')", {"OSError", "PermissionError"}),
        ("open(os.__file__, 'a')", {"OSError", "PermissionError"}),
        ("os.remove(os.__file__)", {"OSError", "PermissionError"}),
        ("os.chmod(os.__file__, 0o777)", {"OSError", "PermissionError"}),
        ("os.mkdir('/proc')", {"OSError"}),
        # Links
        ("os.symlink('/etc/shadow', 'a') or open('a')", {"FileNotFoundError"}),
        ("os.symlink(os.__file__, 'b') or open('b', 'a')", {"OSError", "PermissionError"}),
        ("os.link(os.__file__, 'c')", {"OSError", "PermissionError"}),
        ("os.symlink('../../../../etc/passwd', 'd') or open('d')", {"FileNotFoundError"}),
        # Rights
        ("os.setuid(0)", {"OSError", "PermissionError"}),
        ("os.chroot('.')", {"PermissionError"}),
        ("os.mknod('e', 0o60600, 0x800)", {"PermissionError"}),
        ("os.nice(-5)", {"PermissionError"}),
        ("os.memfd_create('f')", {"PermissionError"}),
        ("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", {"ValueError", "PermissionError"}),
        ("call('unshare', 0x10000000)", {"EPERM"}),
        ("call('ptrace', 16, 1, 0, 0)", {"EPERM"}),
        ("call('mount', b'none', b'/tmp', b'tmpfs', 0, None)", {"EPERM"}),
        ("call('shmget', 0, 1 << 30, 0o1600)", {"EPERM"}),
        ("call('syscall', 425, 1, None)", {"EPERM"}),  # io_uring_setup
        ("call('syscall', 435, None, 0)", {"ENOSYS"}),  # clone3
        # Other processes
        ("os.kill(HOST, 0)", {"ProcessLookupError"}),
        ("os.kill(os.getppid(), 9) or open('/proc')", {"FileNotFoundError"}),  # process 1 does not mind
        ("os.getppid() == 1 and open('/none')", {"FileNotFoundError"}),
        # Sockets
        ("socket.create_connection(('127.0.0.1', PORT), 1)", {"OSError"}),
        ("socket.create_connection(('::1', PORT), 1)", {"OSError"}),
        ("socket.create_connection(('1.1.1.1', 53), 1)", {"OSError"}),
        ("socket.socket(socket.AF_UNIX).connect(chr(0) + 'routershift-test')", {"ConnectionRefusedError"}),
        ("socket.socket(socket.AF_UNIX).connect(PATH)", {"FileNotFoundError"}),
        ("socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", {"OSError"}),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", {"OSError"}),
        ("socket.getaddrinfo('example.org', 80)", {"gaierror"}),
    ],
)
def test_what_is_not_its_own_is_out_of_reach(cells: Cells, tmp_path: Path, attempt: str, errors: set[str]) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as loopback,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        named.bind(str(tmp_path / "redis.sock"))
        abstract.bind("\0routershift-test")
        named.listen()
        abstract.listen()
        program = (
            "import ctypes, errno, os, resource, socket\n"
            f"HOST, PORT, PATH = {os.getpid()}, {loopback.getsockname()[1]}, {named.getsockname()!r}\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "class Refused(Exception): pass\n"
            "def call(name, *arguments):\n"
            "    if getattr(libc, name)(*arguments) == -1:\n"
            "        raise Refused(errno.errorcode[ctypes.get_errno()])\n"
            f"try:\n    {attempt}\n    print('done')\n"
            "except Refused as e:\n    print(e)\n"
            "except Exception as e:\n    print(type(e).__name__)"
        )
        output, end, _ = run(cells, program)
    assert end == "exit"
    assert output.strip() in errors


def test_it_sees_an_empty_environment_and_its_own_descriptors(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@host")
    program = "import os\nprint(sorted(os.environ))\nfor fd in range(3, 1024):\n    try: os.fstat(fd); print(fd)\n    "
    output, _, _ = run(cells, program + "except OSError: pass\nprint(os.getuid(), os.uname().nodename)")
    assert output == "['HOME', 'LANG', 'PATH', 'TMPDIR']\n1000 sandbox\n"


def test_signals_to_everyone_reach_only_its_own(cells: Cells) -> None:
    assert run(cells, "import os\nif os.fork():\n    os.kill(-1, 9)\n    print('alone')") == ("alone\n", "exit", 0)


def test_spoofed_answers_are_output(cells: Cells) -> None:
    forged = '["run", "42", "exit", 0]'
    framed = "import os, struct\nm = b'" + forged + "'\nfor fd in range(1, 64):\n    try: os.write(fd, "
    output, end, code = run(cells, framed + "struct.pack('>I', len(m)) + m)\n    except OSError: pass\nos._exit(7)")
    assert (output, end, code) == (f"\0\0\0{chr(len(forged))}{forged}", "exit", 7)


def test_cases_are_run_apart(cells: Cells) -> None:
    program = "import math\nprint(getattr(math, 'mark', None))\nmath.mark = 1"
    with cells.take() as cell:
        cell.give(["programs", program, "main.py", [], ["", ""]])
        assert [cell.take()[1] for _ in range(2)] == ["None\n", "None\n"]
