"""The script of a job: every shipped recipe on every shipped cluster passes shellcheck."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dsv3_plugin.launch.job_script import script
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.cluster_launch import Container, Launch
from dsv3_plugin.recipe.load import load_recipe
from tests.launch.jobs import RECIPES, job, shipped_jobs

EVERYTHING = {
    "partition": "batch", "account": "physics", "qos": "high", "time_limit_hours": 24.0,
    "options": ["--constraint=ib"], "environment": {"NCCL_IB_HCA": "mlx5", "ODD": "a 'b' *"},
    "scratch": "/local disk", "scratch_gb": 100.0, "spares": 1,
    "setup": ["source /etc/profile.d/modules.sh", "module load 'cuda/13.0'  # it's there"],
}  # fmt: skip
WAYS = {
    "as it ships": {},
    "venv": {**EVERYTHING, "venv": "/shared/my venv"},
    "pyxis": {**EVERYTHING, "container": Container(runtime="pyxis", image="nvcr.io#x/y:1")},
    "apptainer": {**EVERYTHING, "container": Container(runtime="apptainer", image="my image.sif")},
}


def shellcheck(folder: Path) -> None:
    """Fails with what shellcheck says of any script in a folder."""
    files = sorted(folder.glob("*.sbatch"))
    assert files
    command = [Path(sys.executable).with_name("shellcheck"), *files]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.long
def test_every_shipped_recipe_and_cluster_passes_shellcheck(tmp_path):
    names = []
    for name, values in shipped_jobs():
        names.append(name)
        (tmp_path / f"{name}.sbatch").write_text(script(values), encoding="utf-8")
    for recipe in RECIPES:
        own = load_recipe(recipe).cluster or "h800"  # the cluster of the full ones
        assert f"{recipe.replace('/', '-')}-{own}" in names
    assert len({*names}) == len(names) > len(RECIPES)
    shellcheck(tmp_path)


def test_so_does_everything_that_a_clusters_file_can_say(tmp_path):
    for name, keys in WAYS.items():
        for base in ("h800", "cpu"):
            nodes = {} if base == "h800" else {"gpus": 8}
            cluster = load_cluster(base).model_copy(update={"launch": Launch(**keys), **nodes})
            for runs, after in ((1, None), (3, "17")):
                text = script(job("pretrain/tiny", cluster, runs, after))
                place = tmp_path / f"{name}-{base}-{runs}.sbatch".replace(" ", "-")
                place.write_text(text, encoding="utf-8")
    shellcheck(tmp_path)


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:7] == "#SBATCH"]


def test_what_a_clusters_file_says_is_asked_of_slurm():
    cluster = load_cluster("h800").model_copy(update={"launch": Launch(**EVERYTHING)})
    said = directives(script(job("sft/deepseek-v3", cluster, after="17")))
    assert {
        "--partition=batch", "--account=physics", "--qos=high", "--time=1440", "--nodes=65",
        "--ntasks-per-node=8", "--gpus-per-node=8", "--constraint=ib", "--requeue",
        "--open-mode=append", "--dependency=afterok:17", "--kill-on-invalid-dep=yes",
        "--chdir='/home/me/my work'",
    } <= {*said}  # fmt: skip
    plain = directives(script(job("pretrain/tiny", load_cluster("cpu"))))
    wanted = ("partition", "account", "qos", "time", "gpus", "dependency", "array")
    assert not [line for line in plain if line.removeprefix("--").startswith(wanted)]


def test_a_task_of_a_sweep_signals_and_requeues_itself_and_not_the_others():
    """Slurm gives one task of an array the number that the whole array has."""
    for runs, number in ((3, "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"), (1, "$SLURM_JOB_ID")):
        text = script(job("pretrain/tiny", load_cluster("cpu"), runs))
        assert f"\nthis={number}\n" in text
        assert 'scancel --signal=TERM "$this"' in text
        assert 'scontrol requeue "$this"' in text
        assert text.count("SLURM_JOB_ID") == (runs == 1)


@pytest.mark.parametrize(
    ("state", "allowed", "said"),
    [
        ("ALLOCATED", True, "update NodeName=n2 State=DRAIN Reason=dsv3: it's hot\n"),
        ("ALLOCATED+DRAIN", True, ""),
        (
            "ALLOCATED", False,
            "dsv3: node n2 should be drained, by somebody who may: "
            "scontrol update NodeName=n2 State=DRAIN Reason='dsv3: it'\\''s hot'\n",
        ),
    ],
)  # fmt: skip
def test_a_broken_node_is_drained_or_the_command_for_it_said(state, allowed, said, tmp_path):
    function = re.search(
        r"^drain\(\) {\n.*?^}\n", script(job("pretrain/tiny", load_cluster("cpu"))), re.M | re.S
    )[0]
    (tmp_path / "launch" / "check").mkdir(parents=True)
    (tmp_path / "scontrol").write_text(
        '#!/bin/sh\n[ "$1" = update ] || exec echo "NodeName=n2 State='
        f'{state} ThreadsPerCore=1 Reason=DRAIN"\n{"echo" if allowed else "false"} "$@"\n',
        encoding="utf-8",
    )
    (tmp_path / "scontrol").chmod(0o755)
    command = ["bash", "-euc", f"run={tmp_path}\n{function}drain"]
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for broken, expected in ((None, ""), ("n2\tdsv3: it's hot\n", said)):
        if broken is not None:
            (tmp_path / "launch" / "check" / "broken").write_text(broken, encoding="utf-8")
        answer = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
        assert answer.stdout + answer.stderr == expected


def test_a_clusters_file_can_leave_that_to_others():
    cluster = load_cluster("cpu").model_copy(update={"launch": Launch(drain=False)})
    assert "State=DRAIN" not in script(job("pretrain/tiny", cluster))


def test_no_text_ends_the_comment_that_it_stands_in():
    cluster = load_cluster("cpu").model_copy(update={"name": "c\ntouch x", "gpu": "g\ntouch y"})
    values = replace(job("pretrain/tiny", cluster), command="dsv3 launch 'a\ntouch z'")
    text = script(values)
    assert not [line for line in text.splitlines() if line.startswith("touch")]
    assert "touch z" in text


@pytest.mark.parametrize("way", WAYS)
def test_bash_can_read_it_and_values_stay_one_word(way, tmp_path):
    cluster = load_cluster("h800").model_copy(update={"launch": Launch(**WAYS[way])})
    text = script(job("pretrain/tiny", cluster, runs=2))
    place = tmp_path / "job.sbatch"
    place.write_text(text, encoding="utf-8")
    subprocess.run(["bash", "-n", place], check=True)
    if way != "as it ships":
        # As a shell reads the export of a value with quotes, blanks and a star in it.
        export = next(line for line in text.splitlines() if line.startswith("export ODD="))
        said = subprocess.run(
            ["bash", "-c", f'{export}; printf %s "$ODD"'], capture_output=True, text=True
        )
        assert said.stdout == "a 'b' *"


@pytest.mark.parametrize(
    ("setup", "code", "said"),
    [
        (["module() { export LOADED=$2; }", "module load cuda/13.0", "unset=$NOBODY"], 0, "13.0"),
        (["false", "echo never"], 1, "dsv3: this line of launch.setup failed: false"),
        (["echo 'never"], 1, "dsv3: this line of launch.setup failed: echo 'never"),
    ],
)
def test_a_clusters_own_lines_of_shell_come_first_and_end_the_job_where_they_fail(
    setup, code, said
):
    cluster = load_cluster("cpu").model_copy(update={"launch": Launch(setup=setup)})
    before, _, after = script(job("pretrain/tiny", cluster)).partition("\nset -u\n")
    assert "eval" not in after
    answer = subprocess.run(
        ["bash", "-c", f"{before}\nset -u\nenv | grep LOADED"], capture_output=True, text=True
    )
    assert answer.returncode == code
    assert said in answer.stdout + answer.stderr
    assert "never" not in answer.stdout


def test_an_environment_that_a_node_does_not_see_ends_the_job_in_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "half" / "bin").mkdir(parents=True)
    (tmp_path / "half" / "bin" / "activate").touch()
    for name, what in (
        ("file", "file is a file"),
        ("nowhere", "nowhere/bin/activate cannot be read"),
        ("half", "half/bin/python is not there"),
    ):
        launch = Launch(venv=f"{tmp_path}/{name}")
        cluster = load_cluster("cpu").model_copy(update={"launch": launch})
        values = job("pretrain/tiny", cluster)
        command = ["bash", "-c", script(values)]
        node = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "PATH": "/usr/bin:/bin"}
        answer = subprocess.run(command, env=node, capture_output=True, text=True)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert answer.stderr == (
            f"dsv3: launch.venv: {tmp_path}/{what} on node n1: name in launch.venv of the "
            "cluster's file the folder of an environment that all nodes see\n"
        )
    gone = replace(values, place=replace(values.place, python="/gone/python3", venv=None))
    answer = subprocess.run(["bash", "-c", script(gone)], env=node, capture_output=True, text=True)
    assert answer.returncode == 1
    assert (
        "dsv3: the Python that dsv3 launch ran with: /gone/python3 is not there on node n1: "
        in (answer.stderr)
    )


def test_a_cluster_sets_none_of_the_scripts_own_variables():
    launch = Launch(environment={"run": "elsewhere", "this": "1"})
    cluster = load_cluster("cpu").model_copy(update={"launch": launch})
    text = script(job("pretrain/tiny", cluster))
    for name in ("run", "this"):
        assert 0 < text.index(f"\nexport {name}=") < text.index(f"\n{name}=")
