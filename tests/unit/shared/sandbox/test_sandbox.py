"""Attacks on the sandbox. Each is stopped, each comes out as data, and nothing of it is left."""

import os
import platform
import socket
from pathlib import Path

import pytest

from shared.sandbox.sandbox import Sandboxes
from tests.support.sandboxes import answers, run


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
def test_what_takes_too_much_ends_badly_and_in_time(sandboxes: Sandboxes, program: str, ends: set[str]) -> None:
    _, end, code = run(sandboxes, program)
    assert end in ends
    assert (end, code) != ("exit", 0)


def test_what_outlives_its_parent_is_killed_and_not_waited_for(sandboxes: Sandboxes) -> None:
    program = (
        "import os, time\n"
        "if not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(60)\n    os._exit(0)\n"
        "print('done')"
    )
    with sandboxes.take() as sandbox:
        assert answers(sandbox, program, "", "") == [["run", "done\n", "exit", 0]] * 2
    assert sandbox.gone(5)


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
        ("call('syscall', 500)", {"ENOSYS"}),  # one that there will be
        # Quotas of our user, or of the machine
        ("call('inotify_init')", {"EPERM"}),
        ("call('inotify_init1', 0)", {"EPERM"}),
        ("call('fanotify_init', 0x200, 0)", {"EPERM"}),  # FAN_REPORT_FID, which needs no capability
        ("call('syscall', IO_SETUP, 64, ctypes.byref(ctypes.c_void_p()))", {"EPERM"}),
        ("call('syscall', ADD_KEY, b'user', b'a', b'b', 1, -4)", {"EPERM"}),
        ("call('mq_open', b'/a', 0o102, 0o600, None)", {"EPERM"}),
        ("call('semget', 0, 1, 0o1600)", {"EPERM"}),
        ("call('msgget', 0, 0o1600)", {"EPERM"}),
        ("fcntl.fcntl(os.pipe()[0], 1031, 1 << 20)", {"PermissionError"}),  # F_SETPIPE_SZ
        ("fcntl.fcntl(os.open('.', 0), fcntl.F_NOTIFY, fcntl.DN_CREATE)", {"PermissionError"}),
        ("fcntl.fcntl(os.open('f', os.O_CREAT), fcntl.F_SETLEASE, fcntl.F_RDLCK)", {"PermissionError"}),
        ("mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)", {"PermissionError"}),
        ("call('mlock', ctypes.create_string_buffer(1 << 16), 1 << 16)", {"EPERM", "ENOMEM"}),
        ("[call('timer_create', 0, None, ctypes.byref(ctypes.c_int())) for _ in range(1000)]", {"EAGAIN"}),
        ("[os.eventfd(0) for _ in range(100)]", {"OSError"}),
        ("[select.epoll() for _ in range(100)]", {"OSError"}),
        ("socket.socketpair(socket.AF_TIPC)", {"OSError"}),
        ("pty.openpty()", {"OSError", "FileNotFoundError"}),
        # Where it comes in line, and the limits of process 1
        ("os.nice(5)", {"PermissionError"}),
        ("os.sched_setaffinity(0, {0})", {"PermissionError"}),
        ("os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))", {"PermissionError"}),
        ("resource.prlimit(1, resource.RLIMIT_AS, (1 << 20, 1 << 20))", {"PermissionError"}),
        ("os.kill(1, 9) or os.kill(1, 15) or open('/none')", {"FileNotFoundError"}),  # nor does it mind these
        # Standard files
        ("open('/dev/stdin', 'a')", {"OSError", "PermissionError"}),
        ("os.remove('/dev/stdout')", {"OSError"}),
        ("open('/dev/std/x', 'w')", {"OSError"}),
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
def test_what_is_not_its_own_is_out_of_reach(
    sandboxes: Sandboxes, tmp_path: Path, attempt: str, errors: set[str]
) -> None:
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
            "import ctypes, errno, fcntl, mmap, os, pty, resource, select, socket\n"
            f"IO_SETUP, ADD_KEY = {(206, 248) if platform.machine() == 'x86_64' else (0, 217)}\n"
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
        output, end, _ = run(sandboxes, program)
    assert end == "exit"
    assert output.strip() in errors


def test_it_sees_an_empty_environment_and_its_own_descriptors(
    sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@host")
    program = "import os\nprint(sorted(os.environ))\nfor fd in range(3, 1024):\n    try: os.fstat(fd); print(fd)\n    "
    output, _, _ = run(sandboxes, program + "except OSError: pass\nprint(os.getuid(), os.uname().nodename)")
    assert output == "['HOME', 'LANG', 'PATH', 'TMPDIR']\n1000 sandbox\n"


def test_signals_to_everyone_reach_only_its_own(sandboxes: Sandboxes) -> None:
    assert run(sandboxes, "import os\nif os.fork():\n    os.kill(-1, 9)\n    print('alone')") == ("alone\n", "exit", 0)


def test_spoofed_answers_are_output(sandboxes: Sandboxes) -> None:
    forged = '["run", "42", "exit", 0]'
    framed = "import os, struct\nm = b'" + forged + "'\nfor fd in range(1, 64):\n    try: os.write(fd, "
    output, end, code = run(sandboxes, framed + "struct.pack('>I', len(m)) + m)\n    except OSError: pass\nos._exit(7)")
    assert (output, end, code) == (f"\0\0\0{chr(len(forged))}{forged}", "exit", 7)


def test_cases_are_run_apart(sandboxes: Sandboxes) -> None:
    program = "import math\nprint(getattr(math, 'mark', None))\nmath.mark = 1"
    with sandboxes.take() as sandbox:
        assert [answer[1] for answer in answers(sandbox, program, "", "")] == ["None\n", "None\n"]


def test_runs_leave_nothing_behind_for_the_next(sandboxes: Sandboxes) -> None:
    """Neither files nor what would keep them from being removed, nor a program that is another one."""
    program = (
        "import os\nprint(os.listdir('/tmp'), os.listdir('.'), open('main.py').read().count('\\n'))\n"
        "open('left', 'w').close()\nopen('main.py', 'w').write('print(0)')\nos.symlink('/usr', 'link')\n"
        "for _ in range(1500):\n    os.mkdir('deeper')\n    os.chdir('deeper')\n"
        "os.chdir('/tmp')\nos.makedirs('closed/inner')\nos.chmod('closed', 0)\nos.chmod('/tmp', 0)"
    )
    with sandboxes.take() as sandbox:
        seen = answers(sandbox, program, "", "", "")
    assert seen == [["run", f"['main.py'] ['main.py'] {program.count(chr(10))}\n", "exit", 0]] * 3
