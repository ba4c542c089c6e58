"""Runs as jobs of a real Slurm: what is lost, full, over or broken, and what becomes of the run.

Nothing here knows how fast the machine is: events are waited for, what Slurm would do after a time
is asked for, and numbers are compared bit for bit.
"""

import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import partitions, submit
from dsv3_plugin.launch.cancelling import cancel
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.launch.job_script import script
from dsv3_plugin.launch.queue import queued
from dsv3_plugin.launch.starts import starts_of
from dsv3_plugin.launch.status import status_of
from dsv3_plugin.launch.submit import prepare
from dsv3_plugin.launch.wanted import Wanted
from tests.launch.jobs import shipped_jobs, write_cluster
from tests.slurm.two_nodes import PATIENCE_S
from tests.small_runs import LONGER, STEPS, Command, numbers, steps_taken

pytestmark = pytest.mark.slurm

PLAIN = {"environment": {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}, "partition": "main"}
PATIENT = ("parallel.timeout_minutes=60",)
"""Ranks wait for each other, and the check of a node for an answer, as long as it takes."""
ENDLESS = ("training.steps=100000", "training.eval_interval=null", "checkpoint.interval=90000")
"""So that it saves when it is asked to, and only then."""

SLOW_STORAGE = {"storage_gb_per_second": 5e-6}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder to launch from, in which this process is."""
    folder = tmp_path_factory.mktemp("launched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def launch(cluster, here, recipe):
    """A function that launches the small recipe, or another; the run. Not rehearsed but once."""

    def submitted(
        name: str, *overrides: str, keys=PLAIN, of: Path = recipe, storage=None, **wanted
    ) -> RunFolder:
        path = write_cluster(here, keys, **(storage or {}))
        words = (f"directory=runs/{name}", *PATIENT, *overrides)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(submit, "refuse_what_upstream_would", lambda *_: None)
            prepared = prepare(Wanted(str(of), words, str(path), **wanted), print)
        submit.launch(prepared)
        return RunFolder(Path(f"runs/{name}"))

    return submitted


@pytest.fixture(scope="module")
def through(cluster, here, recipe) -> RunFolder:
    """The small run over two nodes, undisturbed, launched as a person does."""
    path = write_cluster(here, PLAIN)
    words = ("launch", recipe, "--cluster", path, "--nodes", "2", "directory=runs/through")
    ended = Command(*words, *PATIENT, cwd=here, SLURM_CONF=os.environ["SLURM_CONF"]).end(PATIENCE_S)
    assert ended.code == 0, ended.output
    return RunFolder(Path("runs/through"))


@pytest.fixture(scope="module")
def child(cluster, through, launch, recipe) -> RunFolder:
    """A run that begins with the weights of that one, launched before those are there."""
    longer = recipe.with_name("longer.yaml")
    longer.write_text(yaml.safe_dump({**LONGER, "from": "runs/through"}))
    run = launch("child", of=longer, after="runs/through")
    # Slurm names another reason until it has first looked at the queue.
    cluster.wait(lambda: waiting(run) == "PENDING (Dependency)", "that it waits for its parent")
    return run


def number(run: RunFolder) -> str:
    return record_of(run).job


def waiting(run: RunFolder) -> str:
    """How its job stands in the queue; empty once it has ended."""
    return str(queued([number(run)]).get(number(run), ""))


def printed(run: RunFolder) -> str:
    return record_of(run).output_file.read_text(encoding="utf-8")


def ends(cluster, run: RunFolder) -> str:
    """Wait for the end of its job; what that printed."""
    cluster.wait(lambda: not waiting(run), f"the end of the job of {run.root}")
    return printed(run)


def trains(cluster, run: RunFolder, after: int = 0) -> None:
    """Wait until it has taken more steps."""
    there = f"a step of {run.root} after {after}"
    cluster.wait(lambda: steps_taken(run.root) > after or not waiting(run), there)
    assert waiting(run), printed(run)


def begins_again(cluster, run: RunFolder, starts: int) -> None:
    """Wait for a further start of a job that is, or comes, back in the queue."""

    def there() -> bool:
        cluster.hurry(number(run))
        assert not cluster.failed(number(run)), printed(run)
        return len(starts_of(run)) >= starts

    # While Slurm puts it back squeue may know of no such job for a moment.
    cluster.wait(there, f"start {starts} of {run.root}")


def end_in(cluster, run: RunFolder, seconds: int) -> None:
    """Let the time of its job be over so soon; once it is back in the queue, it has a day again."""
    job = f"JobId={number(run)}"
    cluster.ask("scontrol", "update", job, f"EndTime=now+{seconds}")
    cluster.wait(
        lambda: waiting(run).startswith("PENDING") or not waiting(run), "back in the queue"
    )
    cluster.ask("scontrol", "update", job, "TimeLimit=1440")


def kill_rank(run: RunFolder, rank: int) -> None:
    """End a rank as the system does when memory runs out."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, variables = process.info["cmdline"] or [], process.info["environ"] or {}
        who = [variables.get(f"SLURM_{name}") for name in ("CONF", "JOB_ID", "PROCID")]
        if "train" in words and who == [os.environ["SLURM_CONF"], number(run), str(rank)]:
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError(f"there is no rank {rank}")


def test_a_run_goes_through_on_two_nodes(cluster, through, child):
    assert "Done: step 12" in ends(cluster, through)
    stands = status_of(through, {})
    assert (stands.state, stands.step, stands.restarts) == ("done", STEPS, 0)
    assert [path.name for path in sorted(through.logs.iterdir())] == [
        "arguments.txt",
        "rank0.log",
        "rank1.log",
    ]
    assert {path.stem for path in (through.launch / "check").glob("*.json")} == {"n1", "n2"}


def test_a_chained_stage_begins_with_its_parents_newest_checkpoint(cluster, through, child):
    ends(cluster, through)
    assert "Done: step 1" in ends(cluster, child)
    (link,) = child.parent.glob("iter_*")
    assert link.resolve() == (through.checkpoints / f"iter_{STEPS:07d}").resolve()


def test_a_lost_node_costs_time_and_no_number(cluster, through, launch):
    ends(cluster, through)
    run = launch("lost", nodes=2)
    cluster.wait(lambda: run.steps_saved() >= 4 or not waiting(run), "a checkpoint")
    trains(cluster, run, after=4)
    cluster.lose("n2")
    cluster.wait(lambda: waiting(run).startswith("PENDING"), "the job back in the queue")
    assert queued([number(run)])[number(run)].restarts == 1
    cluster.up("n2")
    begins_again(cluster, run, starts=2)
    said = ends(cluster, run)
    assert "Node failure on n2" in said
    assert said.count("--- dsv3 starts ") == 2  # what was printed before is there still
    first, second = starts_of(run, number(run))
    assert (first.step, second.step >= 4, second.ended) == (0, True, "done")
    assert numbers(run.root) == numbers(through.root)


def test_the_end_of_its_time_is_saved_before_and_a_cancelled_run_is_saved_too(cluster, launch):
    # By the plan a checkpoint takes a quarter of an hour, so that half an hour is left to save in.
    run = launch(
        "limited", *ENDLESS, keys={**PLAIN, "time_limit_hours": 24.0}, storage=SLOW_STORAGE
    )
    trains(cluster, run)
    notice_s = int(re.search(r"USR1@(\d+)", (run.launch / "job.sbatch").read_text())[1])
    assert 600 < notice_s < 7200
    end_in(cluster, run, notice_s - 60)
    begins_again(cluster, run, starts=2)
    first, second = starts_of(run)
    assert (first.ended, second.step > 0) == ("time limit", True)

    # Where it is over before anything was saved, Slurm asks it to end itself.
    trains(cluster, run, after=second.step)
    end_in(cluster, run, 0)
    begins_again(cluster, run, starts=3)
    third = starts_of(run)[-1]
    assert third.step > second.step

    trains(cluster, run, after=third.step)
    assert "saves and ends" in cancel(run, now=False)
    said = ends(cluster, run)
    assert "The job's time is nearly over: step" in said
    assert f"Stopped: step {run.steps_saved()} is saved." in said
    assert run.steps_saved() > third.step
    assert len(starts_of(run)) == 3


def test_a_preempted_run_goes_on_and_what_scancel_ends_is_saved(cluster, launch):
    run = launch("preempted", *ENDLESS)
    before = number(run)
    with pytest.raises(UserError, match=f"is job {before} already"):
        launch("preempted")
    trains(cluster, run)
    assert number(run) == before
    urgent = ("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive")
    job = cluster.ask(*urgent, "--output=urgent.out", "--wrap=srun true")
    begins_again(cluster, run, starts=2)
    assert not queued([job])
    first, second = starts_of(run)
    assert (first.ended, second.step > 0) == ("stopped", True)

    trains(cluster, run, after=second.step)
    cluster.ask("scancel", before)
    ends(cluster, run)
    assert run.steps_saved() > second.step
    assert len(starts_of(run)) == 2


def test_a_permanent_fault_ends_after_the_budget_with_a_sentence(cluster, launch):
    keys = {**PLAIN, "restarts": 1}
    run = launch("faulty", *ENDLESS[:2], "checkpoint.interval=2", keys=keys)
    for start in (1, 2):
        cluster.wait(lambda n=start: len(starts_of(run)) == n, f"start {start}")
        trains(cluster, run, after=starts_of(run)[-1].step + 2)
        kill_rank(run, 1)
    said = ends(cluster, run)
    assert "the run failed 2 times in this job, and launch.restarts of the cluster's" in said
    # Whoever reads on finds the rank that broke first.
    assert said.count("== rank 1 (failed): runs/faulty/logs/rank1.log") == 2
    assert status_of(run, {}).why.startswith("the run failed 2 times")


def test_a_sweep_runs_each_value_in_a_folder_of_its_own(cluster, launch):
    launch("sweep", "training.steps=2", "training.eval_interval=null", array="training.seed=1,2,3")
    runs = [RunFolder(Path(f"runs/sweep/seed-{seed}")) for seed in (1, 2, 3)]
    for run in runs:
        assert "Done: step 2" in ends(cluster, run)
    assert len({numbers(run.root)[-1]["loss"] for run in runs}) == 3


@pytest.fixture
def venv(tmp_path):
    """A function that makes an environment whose Python first does a line of a shell."""

    def made(line: str) -> str:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "activate").touch()
        python = tmp_path / "bin" / "python"
        python.write_text(f'#!/bin/sh\n{line}\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return str(tmp_path)

    return made


AILING = '[ "$SLURMD_NODENAME $2" = "n1 dsv3_plugin.launch.node_check" ] && exit 1'
"""It cannot look at node n1, which so gives no sign."""
DYING = '[ "$2 $3" = "dsv3_plugin.cli train" ] && kill -KILL $$'
"""As where memory runs out before a step is taken."""


def test_without_progress_a_job_ends_whatever_its_budget(cluster, launch, venv):
    run = launch("stuck", keys={**PLAIN, "venv": venv(DYING), "restarts": 100})
    sentence = "no progress between two restarts: there is still none; find out why"
    assert sentence in ends(cluster, run)
    assert status_of(run, {}).why.startswith(sentence)
    assert len(starts_of(run)) == 2


def test_a_spare_takes_the_place_of_a_node_that_is_not_well_and_that_is_drained(
    cluster, launch, venv
):
    keys = {**PLAIN, "venv": venv(AILING), "spares": 1}
    run = launch("spared", "training.steps=2", "training.eval_interval=null", keys=keys)
    said = ends(cluster, run)
    assert "left out: node n1 (it gave no sign in the time that its check has)" in said
    assert "Done: step 2" in said
    cluster.wait(lambda: cluster.state("n1") == "drained", "n1 drained")
    shown = cluster.ask("scontrol", "--oneliner", "show", "node", "n1")
    assert "Reason=dsv3: it gave no sign in the time that its check has [root@" in shown
    cluster.ask("scontrol", "update", "NodeName=n1", "State=RESUME")


def test_a_step_that_slurm_does_not_start_costs_a_start_and_not_the_job(cluster, launch, venv):
    there = Path(venv(""), "bin")
    (there / "activate").write_text(f"PATH={there}:$PATH\n")
    (there / "srun").write_text(
        f"""#!/bin/sh
[ -e {there}/asked ] && exec {shutil.which("srun")} "$@"
touch {there}/asked
exit "$SLURM_EXIT_ERROR"
"""
    )
    (there / "srun").chmod(0o755)
    keys = {**PLAIN, "venv": str(there.parent)}
    run = launch("unlucky", "training.steps=2", "training.eval_interval=null", keys=keys)
    begins_again(cluster, run, starts=2)
    assert "Done: step 2" in ends(cluster, run)
    first, second = starts_of(run)
    assert (first.ended, second.ended) == ("failed", "done")
    assert first.why == "The ranks were not started; the run goes on from the beginning."


def test_without_a_spare_the_job_ends_with_a_sentence(cluster, launch, venv):
    keys = {**PLAIN, "venv": venv(AILING), "drain": False}
    run = launch("unspared", keys=keys, nodes=2)
    assert "1 of 2 nodes passed their check and the run takes 2: n1 (it gave" in ends(cluster, run)
    assert not run.recipe.exists()
    assert "n1" in status_of(run, {}).why
    cluster.wait(lambda: cluster.state("n1") == "idle", "n1, which is not drained")


def test_an_unknown_partition_is_told_those_that_there_are(cluster, launch, monkeypatch):
    monkeypatch.setattr(partitions, "_PATIENCE_S", 300.0)  # on a machine with much to do
    with pytest.raises(UserError, match=r"Slurm here has no nope \(it has large, main, urgent\)"):
        launch("refused", keys={**PLAIN, "partition": "nope"})


def test_slurm_refuses_what_it_alone_knows_in_its_words(cluster, launch):
    with pytest.raises(UserError, match=r"does not take the job: .*[Ii]nvalid feature"):
        launch("refused", keys={**PLAIN, "options": ["--constraint=nope"]})


def test_slurm_would_take_every_shipped_recipe_on_every_shipped_cluster(cluster, tmp_path):
    for _, values in shipped_jobs():
        path = tmp_path / "job.sbatch"
        path.write_text(script(replace(values, folder=tmp_path, output="/dev/null")))
        cluster.ask("sbatch", "--test-only", "--partition=large", path)
