"""Cells and their owner: one job each, gone with it, and what is left where there is no isolation."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.reward.sandbox.cells import CellLostError, Cells, CellSettings
from tests.support.cells import LIMITS, run


def test_a_cell_takes_one_job_and_is_gone(cells: Cells) -> None:
    with cells.take() as cell:
        cell.give(["programs", "print(1)", "main.py", [], [""]])
        cell.take()
        with pytest.raises(CellLostError):
            cell.take()
    assert cell.gone(5)


def test_it_dies_with_its_owner(cells: Cells) -> None:
    """However the owner dies, and whatever the program does then."""
    script = (
        "import psutil\nfrom services.reward.sandbox.cell.limits import Limits\n"
        "from services.reward.sandbox.cells import Cells, CellSettings\n"
        "cells = Cells(CellSettings(Limits(160, 8, 4, 64, 60.0)), 1)\n"
        "cell = cells.take()\n"
        "cell.give(['programs', 'import os, time\\nos.fork()\\nos.fork()\\ntime.sleep(60)', 'main.py', [], ['']])\n"
        "cells._cells[0].wait()\n"
        "me = psutil.Process()\n"
        "while len(me.children(recursive=True)) < 9: pass\n"  # the nursery, two in each cell, four of the program
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
    open_cells = Cells(CellSettings(LIMITS, isolated=False), 1)
    try:
        output, end, code = run(open_cells, "import os, time\nprint(os.getcwd())\nif not os.fork(): time.sleep(60)")
        with open_cells.take() as cell:
            cell.give(["programs", "import time\nprint(1, flush=True)\ntime.sleep(60)", "main.py", [], [""]])
            nursery = psutil.Process(open_cells._nursery.pid)
            running = [nursery, *nursery.children(recursive=True)]
    finally:
        open_cells.close()
    assert (end, code) == ("exit", 0)
    assert not Path(output.strip()).exists()
    assert not any(process.is_running() for process in running)


def test_where_namespaces_are_refused_there_is_no_sandbox() -> None:
    script = (
        "from services.reward.sandbox.cell import limits\n"
        "from services.reward.sandbox.cells import Cells, CellSettings\n"
        "from shared.errors import PreconditionError\n"
        "limits.drop_privileges()\nlimits._forbid_system_calls()\n"  # unshare is among them
        "try:\n    Cells(CellSettings(limits.Limits(160, 8, 4, 64, 1.0)), 1)\n"
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
        "import os\nfrom services.reward.sandbox.cell.limits import Limits\n"
        "from services.reward.sandbox.cells import Cells, CellSettings\n"
        "cells = Cells(CellSettings(Limits(160, 8, 4, 64, 5.0)), 1)\n"
        "with cells.take() as cell:\n"
        "    cell.give(['programs', 'import os\\nif os.fork(): os.wait()\\nprint(os.getuid())', 'main.py', [], ['']])\n"
        "    print(os.getuid(), cell.take())\n"
        "cells.close()"
    )
    shell = (
        "mount -t tmpfs none /mnt && mkdir /mnt/python /mnt/code && mount --bind $0 /mnt/python && "
        "mount --bind $1 /mnt/code && cd /mnt && PYTHONPATH=/mnt/code exec setpriv --reuid 65534 --regid 65534 "
        '--clear-groups /mnt/python/bin/python3 -c "$2"'
    )
    command = ["unshare", "--mount", "sh", "-c", shell, sys.base_prefix, str(repository), script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "cannot be isolated" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout == "65534 ['run', '1000\\n1000\\n', 'exit', 0]\n", done.stderr
