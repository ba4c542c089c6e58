"""Slurm's variables in torch.distributed's words; the values are those a Slurm 22.05 gave."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.slurm import is_task, tasks_on_node, variables

# srun -N2 -n2, second task
TASK = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "3",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def first_host(nodes: str) -> str:
    assert nodes == "n[1-2]"
    return "n1"


def test_a_task_learns_who_it_is_and_where_to_meet():
    assert is_task(TASK)
    assert variables(TASK, first_host) == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "20300",
    }


def test_what_is_set_already_counts():
    given = {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "5", "RANK": "7"}
    found = variables(TASK | given, first_host)
    assert found.keys() == {"WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


def test_ports_of_jobs_and_steps_differ_and_are_below_those_of_connections():
    ports = set()
    for job in range(50):
        for step in range(5):
            task = TASK | {"SLURM_JOB_ID": str(123_456 + job), "SLURM_STEP_ID": str(step)}
            ports.add(int(variables(task, first_host)["MASTER_PORT"]))
    assert len(ports) == 250
    assert min(ports) >= 20_000
    assert max(ports) < 32_768


def test_one_task_is_an_ordinary_place():
    # An interactive shell on a node, srun -n1, a batch script (which has no step).
    assert not is_task(TASK | {"SLURM_STEP_NUM_TASKS": "1"})
    assert not is_task({k: v for k, v in TASK.items() if not k.startswith("SLURM_STEP")})
    assert not is_task({})


@pytest.mark.parametrize(
    ("written", "counts"), [("8", [8]), ("8(x3),4", [8, 8, 8, 4]), ("1,2(x2)", [1, 2, 2])]
)
def test_tasks_per_node_as_slurm_writes_them(written, counts):
    assert [tasks_on_node(written, node) for node in range(len(counts))] == counts


def test_without_scontrol_the_sentence_says_what_to_set(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        variables(TASK)
