"""What a launcher's environment says of a rank; what is missing or contradicts is one sentence."""

import socket

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.place import check_meeting_place, place, under_a_launcher
from tests.launch.test_slurm import TASK
from tests.small_runs import Command

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n1", "MASTER_PORT": "29500",
}  # fmt: skip


def without(*names, **changes):
    return {k: v for k, v in {**TORCHRUN, **changes}.items() if k not in names}


def test_what_is_whole_stays_as_it_is():
    assert under_a_launcher(TORCHRUN)
    assert place(TORCHRUN) == {}
    check_meeting_place(TORCHRUN)


def test_one_process_per_pod_is_its_first():
    """Kubernetes' operators set RANK, WORLD_SIZE and where to meet, and nothing else."""
    assert place(without("LOCAL_RANK", "LOCAL_WORLD_SIZE")) == {"LOCAL_RANK": "0"}
    assert place(without("LOCAL_RANK", LOCAL_WORLD_SIZE="1")) == {"LOCAL_RANK": "0"}


def test_a_task_of_slurm_is_complete():
    task = {**TASK, "MASTER_ADDR": "n1"}
    assert under_a_launcher(task)
    assert place(task).keys() == {
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT",
    }  # fmt: skip


def test_nobody_launched_a_process_without_any_of_it():
    assert not under_a_launcher({})
    assert not under_a_launcher({"LOCAL_RANK": "0", "MASTER_ADDR": "n1"})


@pytest.mark.parametrize(("given", "missing"), [("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")])
def test_half_of_a_launcher_is_refused(given, missing):
    with pytest.raises(
        UserError, match=f"^{given} is set .* and {missing} is not, .*unset {given}"
    ):
        under_a_launcher({given: "0"})


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (without(RANK="x"), "RANK is 'x' in the environment: set it to a whole number from 0 on"),
        (without(RANK=""), "RANK is '' in the environment"),
        (without(RANK="-1"), "RANK is '-1' in the environment"),
        (without(RANK="1_0"), "RANK is '1_0' in the environment"),
        (without(WORLD_SIZE="4.0"), "WORLD_SIZE is '4.0' in the environment"),
        (without(WORLD_SIZE="0"), "WORLD_SIZE is '0' in the environment"),
        (without(WORLD_SIZE="9" * 5000), "WORLD_SIZE is '999"),
        (without(RANK="4"), "RANK 4 and WORLD_SIZE 4 in the environment contradict each other"),
        (without(LOCAL_RANK="two"), "LOCAL_RANK is 'two' in the environment"),
        (without("LOCAL_RANK"), "LOCAL_RANK is not set in the environment"),
        (
            without(LOCAL_RANK="2"),
            "LOCAL_RANK is 2 in the environment and this machine has 2 ranks",
        ),
        (without(LOCAL_WORLD_SIZE="8"), "LOCAL_WORLD_SIZE 8 and WORLD_SIZE 4 in the environment"),
        (without("LOCAL_WORLD_SIZE", LOCAL_RANK="4"), "LOCAL_RANK is 4 in the environment"),
        ({**TASK, "SLURM_PROCID": "-"}, "SLURM_PROCID is '-' in the environment"),
        ({**TASK, "SLURM_NODEID": "a"}, "SLURM_NODEID is 'a' in the environment"),
        ({**TASK, "SLURM_NODEID": "7"}, "says nothing of node 7: set LOCAL_WORLD_SIZE"),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "2(y3)"}, "SLURM_STEP_TASKS_PER_NODE is '2"),
        ({**TASK, "SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS is 'two'"),
        ({**TASK, "SLURM_JOB_ID": ""}, "SLURM_JOB_ID is '' in the environment"),
    ],
    ids=range(19),
)
def test_what_is_no_number_or_contradicts_is_one_sentence(environment, sentence):
    with pytest.raises(UserError) as refusal:
        place({"MASTER_ADDR": "n1", **environment})
    assert str(refusal.value).startswith(sentence) or sentence in str(refusal.value)


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID"])
def test_what_slurm_left_out_is_named(name):
    task = {key: value for key, value in TASK.items() if key != name} | {"MASTER_ADDR": "n1"}
    if name == "SLURM_LOCALID":  # one task on the node
        assert place(task)["LOCAL_RANK"] == "0"
        return
    with pytest.raises(UserError, match="is not set in the environment"):
        place(task)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (without("MASTER_ADDR"), "MASTER_ADDR is not set in the environment: set it to the name"),
        (without(MASTER_ADDR=""), "MASTER_ADDR is not set in the environment: set it to the name"),
        (without("MASTER_PORT"), "MASTER_PORT is not set in the environment"),
        (without(MASTER_PORT="http"), "MASTER_PORT is 'http' in the environment"),
        (without(MASTER_PORT="70000"), "MASTER_PORT is '70000' in the environment"),
    ],
)
def test_ranks_have_to_be_told_where_they_meet(environment, sentence):
    with pytest.raises(UserError) as refusal:
        check_meeting_place(environment)
    assert str(refusal.value).startswith(sentence)


def test_a_process_that_is_told_nonsense_says_so(recipe, tmp_path):
    ended = Command("train", recipe, f"directory={tmp_path}/run", RANK="x", WORLD_SIZE="2").end()
    assert ended.code == 2
    assert ended.output == (
        "dsv3: RANK is 'x' in the environment: set it to a whole number from 0 on.\n"
    )


def test_a_port_that_is_taken_is_said(recipe, tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        ended = Command(
            "train", recipe, f"directory={tmp_path}/run",
            RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        ).end()  # fmt: skip
    assert ended.code == 2, ended.output
    assert f"dsv3: port {port} of this machine, where the ranks are to meet, is taken" in (
        ended.output
    )
    assert "Traceback" not in ended.output
