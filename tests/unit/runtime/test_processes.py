"""The state of processes, as ``/proc`` shows it."""

import os
import shutil
import subprocess

from hpc_dasgd.runtime.processes import process_status, started_ticks


def test_the_status_names_the_parent_and_the_start_of_a_process():
    with subprocess.Popen(["sleep", "60"]) as child:
        status = process_status(child.pid)
        assert status.parent == os.getpid() and status.state in "RSD"
        assert status.start_ticks == started_ticks(child.pid) >= started_ticks(os.getpid())
        child.kill()


def test_the_name_of_a_process_may_contain_parentheses(tmp_path):
    program = tmp_path / "a) Z 1 (b"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "60"]) as child:
        status = process_status(child.pid)
        assert status.name == "a) Z 1 (b" and status.parent == os.getpid()
        child.kill()


def test_a_zombie_and_a_process_that_does_not_exist_have_no_start():
    with subprocess.Popen(["sleep", "60"]) as child:
        child.kill()
        while process_status(child.pid).state != "Z":
            pass
        assert started_ticks(child.pid) is None
        child.wait()
    assert process_status(child.pid) is None and started_ticks(child.pid) is None
