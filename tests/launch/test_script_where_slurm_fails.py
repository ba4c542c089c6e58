"""The script of a job, run by bash, where Slurm's commands fail it or a signal comes at a bad time.

Slurm's commands are stand-ins here, and so is what answers the script; both write down what they
were asked. What the real ones answer is seen in tests/slurm.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dsv3_plugin.launch.job_script import script
from dsv3_plugin.launch.job_values import Place
from dsv3_plugin.launch.starts import NOT_STARTED
from dsv3_plugin.planner.cluster import load_cluster
from tests.launch.jobs import job

PATIENCE_S = 300

COMMANDS = {
    # What was asked is written down, `sleep` is short, and a file says what comes of the rest: a
    # line for each time, the last for all others.
    "sleep": "exec /bin/sleep 0.01",
    "scancel": "answer scancel",
    "squeue": "answer reason; echo None",
    "srun": 'while [ "$1" != -m ]; do shift; done; answer "${2##*.}"',
    "scontrol": """case $1 in
    --oneliner) answer show && echo "NodeName=$4 NodeAddr=10.0.0.9 Port=1 State=IDLE" ;;
    show) echo n1 ;;
    *) answer "$1" ;;
    esac""",
    "python": 'answer "$3"',
}
ASKED = """#!/bin/bash
answer() {
    local file=$FAKES/$1.does line
    [ -e "$file" ] || exit 0
    line=$(head -n 1 "$file")
    [ "$(wc -l <"$file")" = 1 ] || sed -i 1d "$file"
    eval "$line"
}
[ "${0##*/}" = sleep ] || echo "${0##*/} $*" >>"$FAKES/asked"
"""


class Job:
    """A job's script, and what its commands do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked_file = folder / "asked"
        for name, body in COMMANDS.items():
            (folder / name).write_text(f"{ASKED}{body}\n", encoding="utf-8")
            (folder / name).chmod(0o755)
        self.does("pick", "echo n1")
        self.does("begin", "exit 0", "exit 2")
        self.does("end", "echo done")

    def does(self, what: str, *lines: str) -> None:
        """What a command does each time; the last line, whenever it is asked again."""
        (self.folder / f"{what}.does").write_text("".join(f"{line}\n" for line in lines))

    def start(self) -> subprocess.Popen[str]:
        values = job("pretrain/tiny", load_cluster("cpu"))
        place = Place(str(self.folder / "python"))
        text = script(replace(values, place=place, runs=(self.folder / "run",)))
        (self.folder / "job.sbatch").write_text(text, encoding="utf-8")
        return subprocess.Popen(
            ["bash", self.folder / "job.sbatch"],
            env={
                "PATH": f"{self.folder}:/usr/bin:/bin", "FAKES": str(self.folder),
                "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1",
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, meanwhile: Callable[[subprocess.Popen[str]], None] = lambda _: None) -> int:
        """Its exit code."""
        with self.start() as process:
            try:
                meanwhile(process)
                self.said, _ = process.communicate(timeout=PATIENCE_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return process.returncode

    def asked(self, *beginning: str) -> list[str]:
        """What commands were asked that begin so, in order."""
        lines = self.asked_file.read_text().splitlines() if self.asked_file.exists() else []
        return [line for line in lines if line.startswith(" ".join(beginning))]

    def steps(self) -> list[str]:
        """The modules that srun was to start."""
        return [line.partition("-m dsv3_plugin.")[2].split()[0] for line in self.asked("srun")]

    def ends(self) -> list[str]:
        """What it was told of each end."""
        found = (line.partition("launch.job end ")[2] for line in self.asked("python"))
        return [line.partition("/run ")[2] for line in found if line]

    def when(self, happened: Callable[[], object]) -> None:
        late = time.monotonic() + PATIENCE_S
        while not happened():
            assert time.monotonic() < late, self.asked()
            time.sleep(0.01)


@pytest.fixture
def fake(tmp_path) -> Job:
    return Job(tmp_path)


def test_it_goes_through_where_nothing_fails(fake):
    assert fake.run() == 0
    assert fake.steps() == ["launch.node_check", "launch.all_reduce_check", "cli"]
    assert fake.ends() == ["0"]


@pytest.mark.parametrize("code", ["$SLURM_EXIT_ERROR", "233"])  # 233: no connection to a node
@pytest.mark.parametrize(
    ("what", "begun"),
    [
        ("node_check", ["launch.node_check"]),
        ("all_reduce_check", ["launch.node_check", "launch.all_reduce_check"]),
        ("cli", ["launch.node_check", "launch.all_reduce_check", "cli"]),
    ],
)
def test_a_step_that_slurm_does_not_start_is_nobodys_fault_and_the_job_goes_back(
    fake, what, begun, code
):
    fake.does(what, f"exit {code}")
    fake.does("end", "echo requeue")
    assert fake.run() == 0
    assert fake.steps() == begun
    assert fake.ends() == [str(NOT_STARTED)]
    assert not fake.asked("python -m dsv3_plugin.launch.job blame")
    assert fake.asked("scontrol requeue") == ["scontrol requeue 7"]


@pytest.mark.parametrize("what", ["pick", "blame"])
@pytest.mark.parametrize(("answer", "code", "ends"), [(75, 0, [str(NOT_STARTED)]), (2, 1, [])])
def test_nodes_that_may_come_together_later_are_waited_for_in_the_queue(
    fake, what, answer, code, ends
):
    """And what somebody has to mend ends the job, which has said so."""
    fake.does("all_reduce_check", "exit 1")
    fake.does(what, f"exit {answer}")
    fake.does("end", "echo requeue")
    assert fake.run() == code
    assert fake.ends() == ends
    assert len(fake.asked("scontrol requeue")) == len(ends)
    assert "cli" not in fake.steps()


def test_a_controller_that_is_away_is_waited_for_until_the_job_is_back_in_the_queue(fake):
    fake.does("end", "echo requeue")
    fake.does("requeue", *["exit 1"] * 7, "exit 0")
    fake.does("ping", "exit 1")
    assert fake.run() == 0
    assert len(fake.asked("scontrol requeue 7")) == 8


def test_a_controller_that_refuses_is_not_asked_for_ever(fake):
    fake.does("end", "echo requeue")
    fake.does("requeue", "exit 1")
    assert fake.run() == 1
    assert len(fake.asked("scontrol requeue 7")) == 5
    assert "Slurm does not put job 7 back into the queue: dsv3 launch goes on" in fake.said


@pytest.mark.parametrize(
    ("shown", "address"), [(["exit 1", "exit 1", "true"], "10.0.0.9"), (["exit 1"], "n1")]
)
def test_where_slurm_does_not_tell_an_address_ranks_meet_at_the_nodes_name(fake, shown, address):
    fake.does("show", *shown)
    fake.does("cli", 'echo "at $MASTER_ADDR, launched: $DSV3_LAUNCHED"')
    assert fake.run() == 0
    assert f"at {address}, launched: 1\n" in fake.said


def test_what_follows_an_end_that_could_not_be_asked_for_is_the_queue(fake):
    fake.does("end", "exit 137")
    assert fake.run() == 0
    assert fake.asked("scontrol requeue") == ["scontrol requeue 7"]


@pytest.mark.parametrize(("reason", "again"), [("TimeLimit", True), ("None", False)])
def test_told_to_end_it_goes_back_into_the_queue_where_its_time_was_over(fake, reason, again):
    """Reasons as squeue of Slurm 22.05 gives them meanwhile: None where somebody cancelled it."""
    fake.does("reason", "exit 1", f"echo {reason}; exit 0")  # at first it does not answer
    fake.does("requeue", "exit 1", "exit 0")
    fake.does("ping", "exit 1")
    fake.does("cli", "while [ ! -e $FAKES/saved ]; do sleep 1; done")
    fake.does("end", "echo stop")

    def end(process) -> None:
        fake.when(lambda: "cli" in fake.steps())
        process.send_signal(signal.SIGTERM)
        fake.when(lambda: len(fake.asked("squeue")) == 2)
        (fake.folder / "saved").touch()

    assert fake.run(end) == 1
    assert fake.ends() == ["0 --by-slurm"]
    assert len(fake.asked("scontrol requeue 7")) == 2 * again


def test_a_time_that_is_nearly_over_while_it_waits_for_its_turn_costs_no_start(fake):
    fake.does("begin", "while [ ! -e $FAKES/told ]; do sleep 1; done; exit 0")
    fake.does("end", "echo requeue")

    def tell(process) -> None:
        fake.when(lambda: fake.asked("python"))
        process.send_signal(signal.SIGUSR1)
        (fake.folder / "told").touch()

    assert fake.run(tell) == 0
    assert fake.steps() == []
    assert fake.ends() == ["0 --time-is-up"]
    assert fake.asked("scontrol requeue") == ["scontrol requeue 7"]


@pytest.mark.parametrize("how", ["time", "cancel"])
def test_ranks_that_do_not_hear_yet_are_told_again(fake, how):
    """As where their step is not quite created, or Slurm's controller is busy."""
    fake.does("cli", "while [ ! -e $FAKES/heard ]; do sleep 1; done")
    fake.does("scancel", "exit 1", "exit 0", "touch $FAKES/heard")

    def tell(process) -> None:
        fake.when(lambda: "cli" in fake.steps())
        if how == "time":
            process.send_signal(signal.SIGUSR1)
        else:
            (fake.folder / "run" / "launch").mkdir(parents=True)
            (fake.folder / "run" / "launch" / "stop").touch()

    assert fake.run(tell) == 0
    assert fake.asked("scancel") == ["scancel --signal=TERM 7"] * 3
    assert fake.ends() == ["0 --time-is-up" if how == "time" else "0"]
