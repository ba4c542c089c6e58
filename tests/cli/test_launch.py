"""`dsv3 launch`: what is printed and submitted, and what is refused before anything is queued."""

import errno
from pathlib import Path

import pytest

from dsv3_plugin.files import locks
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import submit
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal.quick import refuse_what_upstream_would
from tests.launch.jobs import write_cluster


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A folder with a cluster's file, and no rehearsal: that costs a process that imports torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit, "refuse_what_upstream_would", lambda *_: None)
    write_cluster(tmp_path, {"partition": "main"})


@pytest.fixture
def sbatch(monkeypatch, tmp_path_factory):
    """A Slurm that takes jobs as number 12 and has them waiting; or what a body says instead."""
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(body: str = "echo 12", queue: str = "", cancel: str = "") -> None:
        for name, text in (("sbatch", body), ("squeue", f"echo '{queue}'"), ("scancel", cancel)):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            (folder / name).chmod(0o755)

    put()
    return put


LAUNCH = ("launch", "pretrain/tiny", "--cluster", "two.yaml")


def test_a_dry_run_prints_the_script_and_leaves_nothing(dsv3, tmp_path):
    said = dsv3(*LAUNCH, "--nodes", 2, "--dry-run", "training.steps=12")
    assert said.code == 0
    assert said.out.startswith("#!/bin/bash\n# tiny on two: 12 steps")
    assert "#SBATCH --partition=main\n" in said.out
    assert "dsv3 launch pretrain/tiny --cluster two.yaml --nodes 2 training.steps=12" in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_torchruns_lines_are_those_of_each_node(dsv3, tmp_path):
    said = dsv3(*LAUNCH, "--nodes", 2, "--torchrun", "training.steps=12")
    _, first, second = said.out.splitlines()
    assert first.startswith("torchrun --nnodes=2 --node-rank=0 --nproc-per-node=1 ")
    assert "--node-rank=1" in second
    there = tmp_path / "two.yaml"  # what the run is planned for, wherever it is started
    assert second.endswith(f"train pretrain/tiny training.steps=12 cluster={there}")


def test_what_kubernetes_lacks_is_refused_before_the_rehearsal(dsv3, monkeypatch):
    monkeypatch.setattr(submit, "refuse_what_upstream_would", lambda *_: pytest.fail("rehearsed"))
    said = dsv3(*LAUNCH, "--kubernetes")
    assert (said.code, said.out) == (2, "")
    assert "--kubernetes starts pods of an image: name one" in said.err


def test_torchruns_lines_bring_what_the_clusters_file_says_of_ranks(dsv3, tmp_path):
    keys = {"environment": {"NCCL_IB_HCA": "mlx5", "ODD": "a 'b'"}, "scratch": "/local"}
    write_cluster(tmp_path, {**keys, "venv": "/v"})
    line = dsv3(*LAUNCH, "--torchrun").out.splitlines()[1]
    assert line.startswith(
        "NCCL_IB_HCA=mlx5 ODD='a '\"'\"'b'\"'\"'' TMPDIR=/local /v/bin/torchrun --nnod"
    )
    write_cluster(tmp_path, {"setup": ["module load cuda"]})
    line = dsv3(*LAUNCH, "--torchrun").out.splitlines()[1]
    assert line.startswith("eval 'module load cuda' && torchrun --nnodes=1 ")
    write_cluster(tmp_path, {"container": {"runtime": "apptainer", "image": "x.sif"}})
    line = dsv3(*LAUNCH, "--torchrun").out.splitlines()[1]
    assert line.startswith("apptainer exec --bind=")
    assert " x.sif torchrun --nnodes=1 " in line


def test_a_job_is_submitted_with_the_recipe_as_it_is_now(dsv3, sbatch, tmp_path):
    before = load_cluster("two.yaml")
    said = dsv3(*LAUNCH, "training.steps=12")
    assert said.out == "Job 12: tiny in runs/tiny; dsv3 status runs/tiny shows it.\n"
    (tmp_path / "two.yaml").unlink()  # and so is the cluster's file
    kept = load_recipe(Path("runs/tiny/launch/recipe.yaml"))
    assert kept.training.steps == 12
    assert kept.cluster == str(tmp_path / "runs/tiny/launch/cluster.yaml")
    assert load_cluster(kept.cluster) == before
    assert "#SBATCH" in Path("runs/tiny/launch/job.sbatch").read_text()
    said = dsv3("status", "runs/tiny")
    assert "12" in said.out
    assert "0/12" in said.out


def test_a_sweep_has_a_run_for_each_value(dsv3, sbatch):
    said = dsv3(*LAUNCH, "--array", "training.seed=1,2,3", "directory=runs/sweep")
    assert said.code == 0, said.err
    assert said.out.splitlines()[2].startswith("Job 12_2: tiny in runs/sweep/seed-3; ")
    assert len(dsv3("status", "runs/sweep").out.splitlines()) == 1 + 3
    for number, seed in enumerate((1, 2, 3)):
        folder = Path(f"runs/sweep/seed-{seed}")
        kept = load_recipe(folder / "launch" / "recipe.yaml")
        assert (kept.training.seed, kept.folder) == (seed, folder)
        assert f"12_{number}" in dsv3("status", folder).out
    assert "#SBATCH --array=0-2" in Path("runs/sweep/launch/sweep.sbatch").read_text()
    assert len(dsv3("status").out.splitlines()) == 1 + 3
    # A run in the folder that holds them is one more, and has its script still.
    assert dsv3(*LAUNCH, "directory=runs/sweep").code == 0
    assert len(dsv3("status").out.splitlines()) == 1 + 4
    assert Path("runs/sweep/launch/sweep.sbatch").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("curves.batch_size=16,7",), "the run with curves.batch_size=7: "),
        (("training.micro_batch_size=1,4000",), "the run with training.micro_batch_size=4000: "),
        (("parallel.processes=2,1", "parallel.expert=1"), "takes 2 ranks on 1 node (CPUs) for"),
        (("training.seed=1,2", "checkpoint.directory=all"), "would all keep their checkpoints in"),
    ],
)  # fmt: skip
def test_every_value_of_a_sweep_is_looked_at_before_anything_is_queued(
    dsv3, sbatch, tmp_path, words, sentence
):
    sbatch(f"touch {tmp_path}/queued; echo 12")
    values, *overrides = words
    said = dsv3(*LAUNCH, "--array", values, *overrides)
    assert (said.code, said.out) == (2, "")
    assert sentence in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_every_value_of_a_sweep_is_rehearsed(dsv3, monkeypatch):
    seen = []
    monkeypatch.setattr(
        submit, "refuse_what_upstream_would", lambda _, words, recipe, *more: seen.append(words[-2])
    )
    assert dsv3(*LAUNCH, "--array", "training.seed=1,2,3", "--dry-run").code == 0
    assert seen == ["training.seed=1", "training.seed=2", "training.seed=3"]


def test_what_upstream_refuses_is_refused_before_anything_is_queued(
    dsv3, sbatch, tmp_path, monkeypatch
):
    """With the real rehearsal, once: the second value of a sweep is what Megatron will not take."""
    monkeypatch.setattr(submit, "refuse_what_upstream_would", refuse_what_upstream_would)
    sbatch(f"touch {tmp_path}/queued; echo 12")
    said = dsv3(*LAUNCH, "--array", "megatron_args.exit-interval=9000,never")
    assert (said.code, said.out) == (2, "")
    assert (
        "the run with megatron_args.exit-interval=never: Megatron refuses these settings"
        in said.err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_a_job_that_cannot_be_written_down_is_cancelled_again(dsv3, sbatch, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(submit, "write_record", full)
    sbatch(cancel=f'echo "$@" > {tmp_path}/cancelled')
    said = dsv3(*LAUNCH)
    assert said.code == 2
    assert (
        "(No space left on device): job 12, which Slurm had taken, is cancelled again" in said.err
    )
    assert (tmp_path / "cancelled").read_text() == "12\n"
    sbatch(cancel="echo away >&2; exit 1")
    assert (
        "job 12 is in the queue still, end it with scancel 12 (Slurm does not" in dsv3(*LAUNCH).err
    )


def test_two_launches_of_one_run_do_not_meet(dsv3, sbatch):
    with locks.take(Path("runs/tiny/launch"), ".lock"):
        assert "another dsv3 launch is submitting the run in runs/tiny" in dsv3(*LAUNCH).err
    sweep = (*LAUNCH, "--array", "training.seed=1,2", "directory=runs/sweep")
    with locks.take(Path("runs/sweep/launch"), ".lock"):
        assert "another dsv3 launch is submitting the run in runs/sweep" in dsv3(*sweep).err
    assert not Path("runs").exists()


def test_what_slurm_takes_for_a_pattern_in_a_folders_name_is_none(dsv3, sbatch):
    assert dsv3(*LAUNCH, "directory=runs/50%j").code == 0
    script = Path("runs/50%j/launch/job.sbatch").read_text()
    assert "/runs/50%%j/launch/job-%j.out" in script
    output = record_of(RunFolder(Path("runs/50%j"))).output_file
    assert output == Path.cwd() / "runs/50%j/launch/job-12.out"


def test_a_container_sees_the_run_wherever_it_is(dsv3, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_cluster(tmp_path, {"container": {"runtime": "pyxis", "image": "x"}, "scratch": "/local"})
    words = (f"directory={elsewhere}/runs/tiny", "checkpoint.directory=here")
    said = dsv3(*LAUNCH, *words, "--dry-run")
    assert (
        f"--container-mounts={tmp_path}:{tmp_path},{elsewhere}:{elsewhere},/local:/local"
        in said.out
    )
    texts, tokenizer = elsewhere / "texts.jsonl", elsewhere / "tokenizer"
    texts.touch()
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").touch()
    (tmp_path / "link").symlink_to(texts)
    words = ("data.corpus=link", f"data.tokenizer={tokenizer}")
    said = dsv3(*LAUNCH, *words, "--dry-run")
    mounts = f"{tmp_path}:{tmp_path},{texts}:{texts},{tokenizer}:{tokenizer},/local:/local"
    assert f"--container-mounts={mounts} " in said.out
    assert "the image sees it only" not in said.err
    refused = dsv3(*LAUNCH, f"directory={elsewhere}/a:b/tiny", "--dry-run")
    assert refused.code == 0  # it is not there yet, and its parent is mounted
    (elsewhere / "a:b").mkdir()
    refused = dsv3(*LAUNCH, f"directory={elsewhere}/a:b/tiny", "--dry-run")
    assert "cannot be mounted into a container: its name has a colon" in refused.err


def test_gpus_that_a_cluster_does_not_have_are_refused(dsv3):
    said = dsv3(*LAUNCH, "host=gpu", "--dry-run")
    assert said.code == 2
    assert (
        "the recipe computes on GPUs (host: gpu), and the cluster's file says host: cpu" in said.err
    )


def test_a_job_waits_for_another_or_for_that_of_a_run(dsv3, sbatch):
    unknown = dsv3(*LAUNCH, "--after", 7, "--dry-run")
    assert (unknown.code, unknown.out) == (2, "")
    assert "--after 7: Slurm knows no job of that number" in unknown.err
    sbatch(queue="7|COMPLETED|None|0|1:00:00||")
    assert "afterok:7\n" in dsv3(*LAUNCH, "--after", 7, "--dry-run").out
    sbatch()
    dsv3(*LAUNCH)
    child = ("launch", "extend/tiny-1k", "--cluster", "two.yaml", "--after", "runs/tiny")
    sbatch(queue="12|PENDING|Priority|0|1:00:00||")
    assert "afterok:12\n" in dsv3(*child, "--dry-run").out
    sbatch()  # it has ended before the run was at its end
    refused = dsv3(*child, "--dry-run")
    assert (refused.code, refused.out) == (2, "")
    assert "job 12 of that run has ended, and the run is not at its end" in refused.err


def test_a_run_that_is_done_is_not_waited_for(dsv3, sbatch, monkeypatch):
    dsv3(*LAUNCH)
    monkeypatch.setattr(submit, "is_done", lambda recipe: recipe.folder == Path("runs/tiny"))
    child = ("launch", "extend/tiny-1k", "--cluster", "two.yaml", "--after", "runs/tiny")
    said = dsv3(*child, "--dry-run")
    assert said.code == 0, said.err
    assert "afterok" not in said.out


def test_a_run_that_is_done_is_not_queued_again(dsv3, sbatch, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "is_done", lambda recipe: recipe.training.seed != 3)
    monkeypatch.setattr(submit, "nothing_to_do", lambda recipe: f"Done is {recipe.folder}.")
    said = dsv3(*LAUNCH)
    assert (said.code, said.out, said.err) == (0, "", "Done is runs/tiny.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]
    swept = dsv3(*LAUNCH, "--array", "training.seed=1,3")  # one of them is left
    assert "Done is runs/tiny/seed-1." in swept.err
    assert "Job 12_1: tiny in runs/tiny/seed-3" in swept.out
    assert dsv3(*LAUNCH, "--dry-run").out.startswith("#!/bin/bash")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("launch", "pretrain/tiny"), "names no cluster: name one with --cluster"),
        (
            (*LAUNCH, "--nodes", "3"),
            "2 ranks cannot be divided evenly among 3 nodes: name another number with --nodes",
        ),
        ((*LAUNCH, "--after", "nobody"), "neither a number of a job nor the folder of a run"),
        ((*LAUNCH, "--array", "training.seed=1,1"), "name each value once"),
        ((*LAUNCH, "--after", "7_"), "neither a number of a job nor the folder of a run"),
        ((*LAUNCH, "--array", "directory=a,b"), "has a folder of its own already"),
        ((*LAUNCH, "--array", "training.seed"), "is not an override"),
        ((*LAUNCH, "--array", "training.sed=1,2"), "unknown key"),
        ((*LAUNCH, "--torchrun", "--dry-run"), "is started by hand: leave out --dry-run."),
        (("launch", "pretrain/deepseek-v3", "--cluster", "two.yaml"), "asks for 2,048 devices"),
        ((*LAUNCH, "directory=runs/a\nb"), "cannot name"),
        ((*LAUNCH, "directory=runs/a\\b"), "cannot name"),
    ],
)
def test_what_cannot_be_is_a_sentence_before_anything_is_queued(
    dsv3, sbatch, tmp_path, words, sentence
):
    sbatch(f"touch {tmp_path}/queued; echo 12")
    said = dsv3(*words)
    assert (said.code, said.out) == (2, "")
    assert sentence in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(dsv3, sbatch, tmp_path):
    path = write_cluster(tmp_path, {})
    path.write_text(path.read_text().replace("memory_gb: 12", "memory_gb: 0.1"))
    said = dsv3(*LAUNCH)
    assert (said.code, said.out) == (2, "")
    assert "tiny on two: it does not fit: pipeline rank 0 needs" in said.err


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("spares", -1, "'launch.spares' is -1"),
        ("time_limit_hours", 0, "'launch.time_limit_hours' is 0"),
        ("restarts", 10**9, "'launch.restarts' is 1000000000"),
        (
            "partition",
            "two words",
            "launch.partition: 'two words' is no name that Slurm takes: write",
        ),
        ("options", ["rm -rf"], "launch.options.0: "),
        ("options", ["--comment='it"], "launch.options.0: "),
        ("options", ["--comment=a\\"], "launch.options.0: "),
        ("options", ["--no-requeue"], "--no-requeue in options is for the script of a job to say"),
        (
            "options",
            ["--outp=x"],
            "--outp=x in options is for the script of a job to say: leave it",
        ),
        ("options", ["--time=1"], "say it with launch.time_limit_hours"),
        ("options", ["--mem=1G"], "say it with launch.exclusive"),
        ("environment", {"A B": "1"}, "'A B' is no name of a variable"),
        ("environment", {"É": "1"}, "'É' is no name of a variable"),
        ("environment", {"RANK": "1"}, "RANK in environment would be the same for all ranks"),
        ("container", {"runtime": "pyxis", "image": "x", "mounts": ["/a:/a,/b:/b"]}, "mounts.0: "),
        ("partitoin", "x", "unknown key 'launch.partitoin' (nearest: 'partition')"),
    ],
)
def test_a_clusters_file_that_cannot_be_is_refused(dsv3, tmp_path, key, value, sentence):
    write_cluster(tmp_path, {key: value})
    said = dsv3(*LAUNCH, "--dry-run")
    assert said.code == 2
    assert sentence in said.err


def test_options_that_contradict_nothing_are_passed_on(dsv3, tmp_path):
    options = ["--mem=64G", "--time-min=60", "--exclude=n[1-2]", "--gres=nvme:1"]
    write_cluster(tmp_path, {"exclusive": False, "options": options})
    script = dsv3(*LAUNCH, "--dry-run").out
    assert all(f"#SBATCH {option}\n" in script for option in options)


def test_a_tilde_is_the_home_folder(dsv3, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    write_cluster(tmp_path, {"venv": "~/venv", "scratch": "~/local"})
    script = dsv3(*LAUNCH, "--dry-run").out
    assert "source /home/me/venv/bin/activate\n" in script
    assert "TMPDIR=/home/me/local\n" in script
    assert "~" not in script
    image = {"runtime": "apptainer", "image": "~/dsv3.sif", "mounts": ["~/data:/data"]}
    write_cluster(tmp_path, {"container": image})
    script = dsv3(*LAUNCH, "--dry-run").out
    assert ",/home/me/data:/data --pwd=" in script
    assert " /home/me/dsv3.sif python3 " in script


def test_without_slurm_there_is_a_sentence_and_nothing_is_left(dsv3, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = dsv3(*LAUNCH)
    assert said.code == 2
    assert "there is no Slurm here (sbatch is not on the PATH)" in said.err
    assert not Path("runs").exists()


def test_what_a_job_would_certainly_lack_is_said_before_it_is_queued(dsv3, sbatch, tmp_path):
    sbatch(f"touch {tmp_path}/queued; echo 12")
    lacking = f"data.corpus: corpus does not exist in {tmp_path}: put it there, or name another"
    said = dsv3(*LAUNCH, "data.corpus=corpus/")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1] == f"dsv3: tiny: {lacking}."
    assert not (tmp_path / "queued").exists()
    for way in ("--dry-run", "--torchrun"):  # which need nothing yet
        said = dsv3(*LAUNCH, "data.corpus=corpus/", way)
        assert said.code == 0
        assert f"Note: {lacking}; dsv3 launch queues nothing before.\n" in said.err


def test_slurms_refusal_is_passed_on(dsv3, sbatch):
    sbatch("echo 'sbatch: error: invalid partition specified: main' >&2; exit 1")
    said = dsv3(*LAUNCH)
    assert said.code == 2
    assert "Slurm does not take the job: sbatch: error: invalid partition specified" in said.err
    assert dsv3("status", "runs/tiny").code == 2  # no run came of it
    assert "the run in runs/tiny has not begun, and Slurm was given no job" in dsv3("status").err


def test_a_run_that_has_a_job_or_a_process_is_left_alone(dsv3, sbatch):
    dsv3(*LAUNCH)
    before = Path("runs/tiny/launch/recipe.yaml").read_bytes()
    sbatch("exit 9", queue="12|RUNNING|None|0|1:00:00|n1|")
    with locks.take(Path("runs/tiny"), ".lock"):  # as its rank 0 does, if it is on this machine
        said = dsv3(*LAUNCH, "training.steps=5")
    assert said.code == 2
    assert "the run in runs/tiny is job 12 already, RUNNING" in said.err
    assert Path("runs/tiny/launch/recipe.yaml").read_bytes() == before
    sbatch("exit 9")
    with locks.take(Path("runs/tiny"), ".lock"):
        said = dsv3(*LAUNCH)
    assert "another run is using runs/tiny" in said.err
