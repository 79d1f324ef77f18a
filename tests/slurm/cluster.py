"""A SLURM cluster of two nodes on this machine, on which tests run job scripts.

Each node is a slurmd in its own namespaces, with its own host name, processes, ``/dev/shm``, boot id (UCX compares boot
ids to find out whether two ranks are on one computer) and folder of temporary files, because files left there by a
killed step break the next step. MPI therefore finds two computers that share no memory. All files are written to the
cluster's folder, including the key and the socket of munge.
"""

import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("node1", "node2")
# Programs started with this are killed when the process that started them ends for any reason.
NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "setpriv", "unshare")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
PATIENCE_S = 120

# `cred_expire` is the time for which a requeued job waits: two minutes by default, at least five seconds.
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
TmpFS={folder}/%n/tmp
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# The first process of a node is this shell, which becomes the parent of processes whose parents have ended.
NODE = """
hostname $1
mount --bind hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
cat /proc/sys/kernel/random/uuid > $1/boot_id
mount --bind $1/boot_id /proc/sys/kernel/random/boot_id
if [ -e pmix ]; then mount --bind pmix $2; fi
slurmd -D -N $1 -f $PWD/slurm.conf
exit $?
"""


def reason_to_skip() -> str | None:
    """Return why no cluster can be started on this machine; None if one can."""
    if os.geteuid() != 0:
        return "only root can start several SLURM nodes on one machine"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"missing {', '.join(missing)}: apt-get install slurm-wlm slurm-wlm-basic-plugins munge libpmix2"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode != 0:
        return "namespaces cannot be created"
    return None


class Cluster:
    """The daemons of the cluster, and the commands of its users."""

    def __init__(self, folder: Path):
        self.folder = folder
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = outside | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """Start all daemons; return when jobs can be submitted."""
        folder = self.folder
        (folder / "state").mkdir()
        port, *ports = _free_ports(1 + len(NODES))
        lines = [SETTINGS.format(host=platform.node(), port=port, folder=folder)]
        for node, node_port in zip(NODES, ports, strict=True):
            (folder / node / "spool").mkdir(parents=True)
            (folder / node / "tmp").mkdir()
            lines.append(f"NodeName={node} NodeAddr=127.0.0.1 Port={node_port} CPUs=4 RealMemory=1000\n")
        (folder / "slurm.conf").write_text("".join(lines))
        (folder / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
        self._start_munge()
        self._start("slurmctld", "-D", "-f", folder / "slurm.conf")
        pmix = self._pmix()
        for node in NODES:
            self._start("sh", "-c", NODE, "sh", node, pmix)
        self.wait(lambda: self._run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() == list(NODES))

    def stop(self) -> None:
        """Kill the first process of each namespace, which ends all others in it, including those of jobs."""
        for daemon in reversed(self._daemons):
            if daemon.poll() is None:
                for first in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split():
                    os.kill(int(first), signal.SIGKILL)
            daemon.wait(PATIENCE_S)

    def submit(self, script: Path) -> str:
        """Submit a script; return the id of the job, which runs in the folder of `script`."""
        return self._run("sbatch", "--parsable", script.name, cwd=script.parent).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Return the fields of a job that ``scontrol show job`` prints."""
        words = self._run("scontrol", "show", "job", "--oneliner", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def signal(self, job_id: str, name: str) -> None:
        """Send a signal to the ranks of a job."""
        self._run("scancel", "--signal", name, job_id)

    def wait_for(self, job_id: str) -> dict[str, str]:
        """Wait until a job has ended; return its fields."""
        self.wait(lambda: self.job(job_id)["JobState"] in OVER)
        return self.job(job_id)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": key} | {
            option: self.folder / f"munge.{option}" for option in ("socket", "pid-file", "log-file", "seed-file")
        }
        # Without --force munged refuses a socket in a folder that other users cannot enter.
        self._start("munged", "--foreground", "--force", *(f"--{option}={path}" for option, path in files.items()))
        self.wait(files["socket"].exists)

    def _pmix(self) -> Path:
        """Return Debian's folder of PMIx; nodes mount a copy over it with the file name that SLURM opens."""
        for library in Path("/usr/lib").glob("*/pmix2/lib/libpmix.so.2"):
            shutil.copytree(library.parent, self.folder / "pmix", symlinks=True)
            link = self.folder / "pmix" / "libpmix.so"
            if not link.exists():
                link.symlink_to("libpmix.so.2")
            return library.parent
        return Path()

    def _start(self, *command) -> None:
        with (self.folder / "daemons.log").open("a") as log:
            daemon = subprocess.Popen([*NAMESPACES, *map(str, command)], cwd=self.folder, stdout=log, stderr=log)
        self._daemons.append(daemon)

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds."""
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert all(daemon.poll() is None for daemon in self._daemons), self.logs()
            assert time.monotonic() < end_s, self.logs()
            time.sleep(0.4)

    def logs(self) -> str:
        """Return the last part of each log file."""
        return "\n".join(f"{path}:\n{path.read_text()[-3000:]}" for path in sorted(self.folder.rglob("*.log")))


def _free_ports(count: int) -> list[int]:
    """Return numbers of TCP ports that no program uses."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
