"""What a job's script says: nodes, times and words, by a recipe, its plan and a cluster's file."""

import re
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.job_values import Placement, job_name, place_on, placed, values_of
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.planner.cluster_launch import Container, Launch
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.recipe.load import load_recipe


def test_one_node_is_no_nodes():
    assert Placement(32, 8, 1).sentence.startswith("32 nodes run; 1 takes the place of what")
    assert Placement(1, 8, 2).sentence.startswith("1 node runs; 2 take the place of what")


def with_launch(name: str, **keys) -> Cluster:
    return load_cluster(name).model_copy(update={"launch": Launch(**keys)})


def values(recipe: str, cluster: Cluster, *overrides: str, nodes=None, runs=None):
    loaded = load_recipe(recipe, overrides, cluster.machine)
    return values_of(
        loaded,
        make_plan(loaded, cluster, cluster.machine),
        runs=runs or [loaded.folder],
        nodes=nodes,
        after=None,
        command="dsv3 launch",
        folder=Path("/work"),
    )


def test_ranks_fill_nodes_and_spares_are_asked_for_beyond_them():
    job = values("pretrain/deepseek-v3", with_launch("h800", spares=0))
    assert (job.placement.nodes, job.placement.ranks_per_node) == (256, 8)
    assert (job.gpus_per_node, job.on_gpu) == (8, True)
    job = values("sft/deepseek-v3", with_launch("h800", spares=2))
    assert (job.placement.nodes, job.nodes_asked, job.ranks) == (64, 66, 512)


def test_a_run_on_cpus_asks_for_no_gpus_wherever_it_runs():
    job = values("pretrain/tiny", load_cluster("h100"))
    assert (job.gpus_per_node, job.on_gpu) == (0, False)
    assert (job.placement.nodes, job.placement.ranks_per_node) == (1, 2)


@pytest.mark.parametrize(
    ("nodes", "spares", "sentence"),
    [
        (3, 0, "2 ranks cannot be divided evenly among 3 nodes: take --nodes 1, or set parallel."),
        (2, 0, "it takes 2 nodes, and there are 1"),
        (1, 1, "the run takes 1 node of 1, which leaves 0 for the 1 spare of launch.spares"),
    ],
)
def test_nodes_that_cannot_be_are_refused(nodes, spares, sentence):
    recipe = load_recipe("pretrain/tiny")
    with pytest.raises(UserError, match=f"tiny on cpu: {sentence}"):
        placed(recipe, with_launch("cpu", spares=spares), nodes)


def test_more_ranks_on_a_node_than_it_has_devices_are_refused():
    recipe = load_recipe("sft/deepseek-v3")
    with pytest.raises(UserError, match=r"512 ranks on 4 nodes are 128 on each.* --nodes 64"):
        placed(recipe, load_cluster("h800"), 4)


def test_what_does_not_fit_says_so_and_how_it_would():
    with pytest.raises(UserError, match=r"it does not fit: .*; it fits with \S+=") as refused:
        values("pretrain/deepseek-v3", load_cluster("h800"), "training.micro_batch_size=4")
    assert str(refused.value).startswith("deepseek-v3 on h800: ")


def test_the_time_limit_is_in_minutes_and_leaves_time_to_save():
    cluster = with_launch("h800", time_limit_hours=24.0)
    job = values("pretrain/deepseek-v3", cluster)
    assert job.minutes == 1440
    plan = make_plan(load_recipe("pretrain/deepseek-v3"), cluster, cluster.machine)
    # A step and a checkpoint, twice.
    assert job.notice_s > 2 * max(phase.step_seconds for phase in plan.phases)
    assert "times the limit of 1d00h" in job.sentence
    assert values("pretrain/tiny", load_cluster("cpu")).notice_s == 60


def test_a_time_limit_in_which_a_job_could_hardly_do_a_step_is_refused_with_the_numbers():
    """32 nodes write 9.6 TB in 28 s, a step takes 184 s by the plan: 425 s of notice."""
    short = with_launch("h100", time_limit_hours=0.2)
    sentence = (
        "deepseek-v3-256 on h100: a time limit of 12m00s is too short: starting takes some 2m00s, "
        "reading a checkpoint 28s, 3 steps 9m13s by the plan, and the ranks are told to save 7m05s "
        "before the end, which Slurm does up to 1m00s early: set launch.time_limit_hours to 0.34 "
        "or more in the cluster's file."
    )
    with pytest.raises(UserError, match=re.escape(sentence)):
        values("pretrain/deepseek-v3-256", short)
    assert values("pretrain/deepseek-v3-256", with_launch("h100", time_limit_hours=0.34)).minutes
    with pytest.raises(UserError, match="a time limit of 1m00s is too short"):
        values("pretrain/tiny", with_launch("cpu", time_limit_hours=0.01))


def test_ranks_run_in_a_venv_or_an_image():
    folder = Path("/work")
    assert place_on(with_launch("cpu", venv="/v"), folder).python == "/v/bin/python"
    image = Container(runtime="apptainer", image="dsv3.sif", mounts=["/data:/data"])
    place = place_on(with_launch("h100", container=image), folder)
    assert place.in_step == (
        "apptainer", "exec", "--nv", "--bind=/work:/work,/data:/data", "--pwd=/work", "dsv3.sif",
    )  # fmt: skip
    assert place.alone == place.in_step
    others = [Path("/data/texts"), Path("/more/texts.jsonl")]
    assert place_on(with_launch("h100", container=image), folder, others).mounts == (
        "/work:/work", "/more/texts.jsonl:/more/texts.jsonl", "/data:/data",
    )  # fmt: skip
    assert "--nv" not in place_on(with_launch("cpu", container=image), folder).in_step
    image = Container(runtime="pyxis", image="registry/dsv3")
    place = place_on(with_launch("h100", container=image), folder)
    assert not place.in_step
    assert place.step_options == (
        "--container-image=registry/dsv3", "--container-mounts=/work:/work",
        "--container-workdir=/work",
    )  # fmt: skip
    # The script itself is outside the image: what it asks runs in a step of its own.
    assert place.alone[:2] == ("srun", "--overlap")


def test_a_sweep_has_one_output_a_task_beside_its_runs():
    runs = [Path("runs/tiny/seed-1"), Path("runs/tiny/seed-2")]
    job = values("pretrain/tiny", load_cluster("cpu"), runs=runs)
    assert job.is_array
    assert job.output == "/work/runs/tiny/launch/job-%A_%a.out"
    alone = values("pretrain/tiny", load_cluster("cpu"), runs=runs[:1])
    assert alone.output == "/work/runs/tiny/seed-1/launch/job-%j.out"


def test_a_jobs_name_has_no_character_that_a_tool_of_slurm_stumbles_over():
    assert job_name("my run: 3/4 #2") == "my-run-3-4-2"
    assert job_name("***") == "dsv3"
