"""A Slurm of two nodes on this machine, where Debian's is installed and it is root who asks."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")
NEEDED = "DSV3_NEEDS_SLURM"
"""Environment variable: where it is 1, a test that would skip for want of Slurm fails."""
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "runuser")

_PATIENCE_S = 600
"""For whatever is waited for; nothing takes a tenth of it, be the machine as slow as it may."""


@dataclass(frozen=True)
class TestCluster:
    """The nodes n1 and n2, and what is asked of their Slurm."""

    __test__ = False

    folder: Path

    def act(self, action: str, *words: str) -> None:
        """Start, stop, kill or bring up, as the script does."""
        subprocess.run([SCRIPT, action, self.folder, *words], check=True)

    def ask(self, *command: str | Path) -> str:
        """What one of Slurm's commands prints."""
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def wait(self, happened: Callable[[], object], what: str) -> None:
        """Wait until something has happened."""
        deadline = time.monotonic() + _PATIENCE_S
        while not happened():
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.1)


def why_not() -> str | None:
    """Why there can be no Slurm here."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "only root can start a Slurm"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    """The two nodes, up; Slurm's commands of this process ask them."""
    if reason := why_not():
        if os.environ.get(NEEDED) == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    there = TestCluster(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(there.folder / "slurm.conf"))
        try:
            there.act("start")
            yield there
        finally:
            there.act("stop")
