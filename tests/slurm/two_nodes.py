"""A Slurm of two nodes on this machine, as long as it is wanted: no systemd, no cgroups, no GPU.

    python -m tests.slurm.two_nodes COMMAND …      COMMAND (a shell by default) with that Slurm

It has a network of its own, so that its ports, and those at which ranks meet, are nobody else's;
each daemon has a namespace of processes of its own, so that with it all ends that it started, as
with a node that is lost (the steps of a job outlive the mere daemon); and all of them end with the
process that started them, however that ends. From Debian: slurm-wlm, munge. As root.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv")
NODES = {"n1": 17001, "n2": 17002}
"""Nodes that are there, and their ports."""
PATIENCE_S = 3600
"""For whatever is waited for; nothing takes a hundredth of it on a machine that is not busy."""

# Nothing here is to depend on how fast the machine is, so no time ends anything: a node is lost
# when that is said, and what is asked to end may take its time.
#
# SlurmdTimeout, MessageTimeout, TCPTimeout, BatchStartTimeout, UnkillableStepTimeout, EioTimeout:
# what is slow is not lost. KillWait, GraceTime: what is cancelled or preempted has time to save.
# cred_expire: as Slurm has it; a job that goes back into the queue waits for so long, unless it is
# told to begin. g1 to g300 are there on paper, as nodes of a cloud that nobody has started: Slurm
# says of a large job whether it would take it. What waits in `urgent` has jobs of `main` put back
# into the queue.
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=120
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=0
MessageTimeout=100
TCPTimeout=60
BatchStartTimeout=3600
UnkillableStepTimeout=3600
EioTimeout=3600
KillWait=3600
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.log
GresTypes=gpu
ResumeProgram=/bin/true
SuspendProgram=/bin/true
SuspendTime=3600
SuspendExcNodes=n1,n2
{nodes}
NodeName=g[1-300] State=CLOUD NodeHostname={host} NodeAddr=127.0.0.1 Port=[18001-18300] CPUs=64 \
RealMemory=4000 Gres=gpu:8
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=3600 State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF State=UP
PartitionName=large Nodes=g[1-300] State=UP
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000"


def why_not() -> str | None:
    """Why there can be no such Slurm here."""
    if os.geteuid() != 0:
        return "only root can start a Slurm"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    command = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"no namespaces here: {answer.stderr.strip()}" if answer.returncode else None


@dataclass
class TwoNodes:
    """The nodes n1 and n2, and what is asked of their Slurm."""

    folder: Path
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        """Let the daemons come up, in the namespaces that this process is in."""
        host = os.uname().nodename.partition(".")[0]
        nodes = (_NODE.format(name=name, host=host, port=port) for name, port in NODES.items())
        text = _CONFIGURATION.format(folder=self.folder, host=host, nodes="\n".join(nodes))
        self.configuration.write_text(text, encoding="utf-8")
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log",
                 "seed-file": "seed"}  # fmt: skip
        options = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        self._begin("munged", "munged", "--foreground", "--force", *options)
        self.wait((self.folder / "munge.socket").exists, "munged's socket")
        self._begin("slurmctld", "slurmctld", "-D", "-f", self.configuration)
        for node in NODES:
            self.up(node)
        self.wait(lambda: all(self.state(node) == "idle" for node in NODES), "both nodes idle")

    @property
    def configuration(self) -> Path:
        """What SLURM_CONF has to name for Slurm's commands to ask this one."""
        return self.folder / "slurm.conf"

    def up(self, node: str) -> None:
        """Let a node come up."""
        self._begin(node, "slurmd", "-D", "-N", node, "-f", self.configuration)

    def lose(self, node: str) -> None:
        """End a node's daemon and all its steps at once, and let Slurm know that it is lost."""
        self._end(node)
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        # For ten seconds Slurm goes on to tell that node what it has to end. Were it back by then,
        # it would end what begins there: the wait for old credentials is otherwise longer.
        nothing_to_tell = re.compile(r"Agent queue size: *0\n *Agent count: *0\n")
        self.wait(lambda: nothing_to_tell.search(self.ask("sdiag")), "nothing to tell that node")

    def hurry(self, job: str) -> None:
        """Let a job that is back in the queue begin, if it waits for old credentials to expire."""
        command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T %r %V"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if answer[:2] != ["PENDING", "BeginTime"]:
            return
        # A node takes credentials for old ones that are of the second in which it revoked those:
        # Slurm would fail the job for good.
        if datetime.now() >= datetime.fromisoformat(answer[2]) + timedelta(seconds=2):
            # It may have begun meanwhile, and is to be left alone then.
            begin = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
            subprocess.run(begin, capture_output=True, check=False)

    def failed(self, job: str) -> bool:
        """Whether a job has ended badly, lately."""
        command = ["scontrol", "--oneliner", "show", "job", job]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return "JobState=FAILED" in answer.stdout

    def ask(self, *command: str | Path) -> str:
        """What one of Slurm's commands prints."""
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout.strip()

    def state(self, node: str) -> str:
        """What Slurm says of a node; nothing while it does not answer."""
        command = ["sinfo", "--noheader", f"--nodes={node}", "--format=%T"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return (answer.stdout.split() or [""])[0]

    def wait(self, happened: Callable[[], object], what: str) -> None:
        """Wait until something has happened; a daemon that ends meanwhile ends the waiting."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert time.monotonic() < deadline, f"never: {what}"
            for name, daemon in self._daemons.items():
                ended = daemon.poll()
                assert ended is None, f"{name} ended with {ended}: {self._said(name)}"
            time.sleep(0.1)

    def stop(self) -> None:
        """End them all."""
        for name in [*self._daemons]:
            self._end(name)

    def _begin(self, name: str, *command: str | Path) -> None:
        ends_with_us = ("setpriv", "--pdeathsig", "KILL")
        alone = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        with (self.folder / f"{name}.out").open("ab") as said:
            self._daemons[name] = subprocess.Popen(
                [*ends_with_us, *alone, *command],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests
            )

    def _said(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(encoding="utf-8", errors="replace")[-2000:]

    def _end(self, name: str) -> None:
        """Kill the first process of its namespace, with which all there ends."""
        daemon = self._daemons.pop(name)
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
        for child in children.read_text(encoding="ascii").split() or [daemon.pid]:
            os.kill(int(child), signal.SIGKILL)
        daemon.wait()


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """The two nodes, up; Slurm's commands of this process ask them."""
    cluster = TwoNodes(folder)
    before = os.environ.get("SLURM_CONF")
    with _own_network():
        os.environ["SLURM_CONF"] = str(cluster.configuration)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            del os.environ["SLURM_CONF"]
            if before is not None:
                os.environ["SLURM_CONF"] = before


@contextlib.contextmanager
def _own_network() -> Iterator[None]:
    """Have this thread, and what it starts, on a network that has nothing but a loopback."""
    # struct ifreq and its requests, as netdevice(7) has them.
    up, running, set_flags, set_address = 0x1, 0x40, 0x8914, 0x8916
    # Where 127.0.0.1 is all there is, getaddrinfo with AI_ADDRCONFIG, Slurm's, finds nothing.
    second = struct.pack("=16sH2x4s20x", b"lo:1", socket.AF_INET, socket.inet_aton("192.0.2.1"))
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        os.unshare(os.CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anybody:
            fcntl.ioctl(anybody, set_flags, struct.pack("=16sH22x", b"lo", up | running))
            fcntl.ioctl(anybody, set_address, second)
        yield
    finally:
        os.setns(outside, os.CLONE_NEWNET)
        os.close(outside)


def main(command: list[str]) -> int:
    """Run a command with a Slurm of two nodes; its exit code."""
    if reason := why_not():
        print(f"There can be no Slurm here: {reason}.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="two-nodes-") as folder, two_nodes(Path(folder)):
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [os.environ.get("SHELL", "/bin/sh")]))
