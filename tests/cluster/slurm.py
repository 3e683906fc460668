"""A real Slurm on this machine: two nodes of one core, a low and a high partition, preemption by requeueing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.waiting import PATIENCE, wait_for

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
NODES = ("n1", "n2")
CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
ReturnToService=2
KillWait=5
JobRequeue=1
MinJobAge=3600
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=20
JobCompType=jobcomp/filetxt
JobCompLoc={root}/jobs
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmdPidFile={root}/%n.pid
SlurmdLogFile={root}/%n.log
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/slurmctld.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main   Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=spare  Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
"""


class Cluster:
    """Daemons under `root`; `env` is what a process needs to be on a login node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons; return when both nodes are idle."""
        for name in ("munge", "state", *(f"spool.{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True)
        key = self.root / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        conf = CONF.format(root=self.root, host=socket.gethostname().split(".")[0], ports=_free_ports(3))
        (self.root / "slurm.conf").write_text(conf)
        files = [f"--{what}-file={self.root}/munge/{what}" for what in ("key", "pid", "log", "seed")]
        self._spawn("munged", "--foreground", "--force", f"--socket={self.root}/munge/socket", *files)
        wait_for(lambda: (self.root / "munge/socket").exists())
        self._spawn("slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.run("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D", check=False).strip() == "2")

    def start_node(self, node: str) -> None:
        self._spawn(node, "-D", "-N", node, program="slurmd")

    def kill_node(self, node: str) -> None:
        """The node dies at once; what runs on it goes on, as behind a broken network."""
        self.daemons.pop(node).kill()

    def run(self, *command: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
        """Run a command of the cluster and return its output."""
        done = subprocess.run(command, env=env or self.env, capture_output=True, text=True, timeout=PATIENCE)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """`RUNNING`, `PENDING`, …; empty where Slurm knows no such job."""
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False).strip()

    def stop(self) -> None:
        """Cancel what is left and end every daemon."""
        with suppress(subprocess.SubprocessError):
            self.run("scancel", "-f", "--signal=KILL", "-u", "root", check=False)
            self.run("scancel", "-u", "root", check=False)
            with suppress(AssertionError):
                wait_for(lambda: not self.run("squeue", "-h", "-t", "R,CG", check=False).strip(), patience=15)
        for process in reversed(list(self.daemons.values())):
            process.send_signal(signal.SIGTERM)
        for process in self.daemons.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _spawn(self, name: str, *arguments: str, program: str | None = None) -> None:
        path = shutil.which(program or name) or f"/usr/sbin/{program or name}"
        with (self.root / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen([path, *arguments], env=self.env, stdout=out, stderr=out)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
