"""Manifests for those without Slurm: what the job's script says, in the words of others."""

import itertools
import shlex

import pytest
import yaml

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.job_script import script
from dsv3_plugin.launch.manifests import dns_name, kubernetes, registry_name, skypilot
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.cluster_launch import Container, Launch
from tests.launch.jobs import job, shipped_jobs
from tests.launch.test_job_script import directives

IMAGE = Container(runtime="pyxis", image="nvcr.io#team/dsv3:1", mounts=["/data:/corpus:ro"])
WORDS = ["sft/deepseek-v3", "training.seed=2", "name=a 'b' $HOME"]


def on(base: str, **launch):
    return load_cluster(base).model_copy(update={"launch": Launch(**launch)})


@pytest.fixture(scope="module")
def values():
    """A job of 64 nodes in an image, with all that a cluster's file can say of one."""
    launch = {
        "container": IMAGE, "restarts": 7, "scratch": "/local disk", "spares": 1,
        "environment": {"NCCL_IB_HCA": "mlx5", "ODD": "a 'b' \"c\" #*"},
        "setup": ["module load 'a' \"b\""],
    }  # fmt: skip
    return job("sft/deepseek-v3", on("h800", **launch))


def started(line: str) -> dict[str, str]:
    """What torchrun is told, by option; the command under `-m`."""
    options, _, command = line.partition(" -m dsv3_plugin.cli ")
    words = [word for word in shlex.split(options) if word.startswith("--")]
    return {**dict(word.split("=", 1) for word in words), "command": shlex.split(command)}


def test_a_pytorchjob_says_what_the_jobs_script_says(values):
    text = kubernetes(values, WORDS, "/shared/h800.yaml")
    assert "rdma/hca_shared_devices_a: 1" in text
    said = yaml.safe_load(text)
    assert (said["apiVersion"], said["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    policy, nodes = said["spec"]["runPolicy"], said["spec"]["pytorchReplicaSpecs"]
    assert policy == {"backoffLimit": 7, "cleanPodPolicy": "None"}
    assert {kind: node["replicas"] for kind, node in nodes.items()} == {"Master": 1, "Worker": 63}
    pods = [node["template"]["spec"] for node in nodes.values()]
    assert pods[0] == pods[1]
    pod = pods[0]
    (rank,), (check,) = pod["containers"], pod["initContainers"]
    assert rank["name"] == "pytorch"
    assert rank["image"] == check["image"] == "nvcr.io/team/dsv3:1"
    assert rank["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    environment = {entry["name"]: entry.get("value") for entry in rank["env"]}
    assert environment.pop("NODE_NAME") is None
    assert environment == {**values.cluster.launch.environment, "TMPDIR": "/local disk"}
    assert rank["workingDir"] == "/home/me/my work"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in rank["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory"}
    assert mounts["/corpus"]["hostPath"] == {"path": "/data"}
    assert {"/home/me/my work", "/local disk"} <= mounts.keys()
    *shell, line = rank["command"]
    assert shell == ["/bin/sh", "-c"]
    assert shlex.split(line)[:4] == ["eval", "module load 'a' \"b\"", "&&", "exec"]
    assert started(line) == {
        "--nnodes": "64", "--nproc-per-node": "8", "--node-rank": "$RANK",
        "--master-addr": "$MASTER_ADDR", "--master-port": "$MASTER_PORT",
        "--shutdown-timeout": str(values.notice_s), "command": ["train", *WORDS],
    }  # fmt: skip
    assert pod["terminationGracePeriodSeconds"] == values.notice_s
    *shell, looked = check["command"]
    assert shell == ["/bin/sh", "-c"]
    assert shlex.split(looked) == [
        "eval", "module load 'a' \"b\"", "&&", "exec", "python3", "-m", "dsv3_plugin.cli", "doctor",
        "--node", "--cluster", "/shared/h800.yaml",
    ]  # fmt: skip


def test_a_task_of_skypilot_does_too(values):
    text = skypilot(values, WORDS, "/shared/h800.yaml")
    assert "network_tier: best in resources" in text
    said = yaml.safe_load(text)
    assert said["num_nodes"] == 64
    assert said["resources"] == {
        "accelerators": "H800:8",
        "image_id": "docker:nvcr.io/team/dsv3:1",
        "job_recovery": {"max_restarts_on_errors": 7},
    }
    assert said["envs"] == {**values.cluster.launch.environment, "TMPDIR": "/local disk"}
    *before, line = said["run"].splitlines()
    assert before[0] == "cd '/home/me/my work' || exit 2"
    assert shlex.split(before[1]) == ["eval", "module load 'a' \"b\"", "||", "exit", "2"]
    assert "doctor --node --cluster /shared/h800.yaml || exit" in said["run"]
    options = started(line)
    assert (options["--nnodes"], options["--nproc-per-node"]) == ("64", "8")
    assert options["--node-rank"] == "$SKYPILOT_NODE_RANK"
    assert options["command"] == ["train", *WORDS]


def test_every_shipped_recipe_and_cluster_has_as_many_nodes_and_ranks_as_slurm_is_asked_for():
    for name, values in shipped_jobs():
        task = yaml.safe_load(skypilot(values, ["x"], "h800"))
        line = task["run"].splitlines()[-1]
        asked = dict(option.split("=", 1) for option in directives(script(values)) if "=" in option)
        told = (str(task["num_nodes"]), started(line)["--nproc-per-node"])
        assert told == (asked["--nodes"], asked["--ntasks-per-node"]), name
        gpus = asked.get("--gpus-per-node")
        found = task["resources"].get("accelerators", "").partition(":")
        assert found[2] == (gpus or "")
        assert found[0] in ("", "H800", "H100", "H200", "B200", "GB200", "GB300", "MI300X")


def test_one_node_is_a_master_alone_and_cpus_are_no_gpus():
    values = job("pretrain/tiny", on("cpu", container=IMAGE))
    text = kubernetes(values, ["pretrain/tiny"], "cpu")
    assert "RDMA" not in text
    said = yaml.safe_load(text)
    assert said["spec"]["pytorchReplicaSpecs"].keys() == {"Master"}
    pod = said["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"limits": {"cpu": 2}}
    assert yaml.safe_load(skypilot(values, ["x"], "cpu"))["resources"]["cpus"] == "2+"


def test_what_no_registry_has_is_a_sentence():
    with pytest.raises(UserError, match=r"pods of an image: name one .*nvcr\.io/team/dsv3:1"):
        kubernetes(job("pretrain/tiny", on("cpu")), ["x"], "cpu")
    for image in ("/images/dsv3.sqsh", "my.sif", "./image"):
        with pytest.raises(UserError, match="is a file: here it has to be the name of an image"):
            registry_name(image)
    assert registry_name("docker://ghcr.io/team/dsv3:1") == "ghcr.io/team/dsv3:1"
    nameless = on("h800").model_copy(update={"gpu": "the fast one"})
    with pytest.raises(UserError, match="the fast one of the cluster's file has no model in it"):
        skypilot(job("sft/deepseek-v3", nameless), ["x"], "h800")


def test_names_are_such_as_dns_takes():
    assert dns_name("My run.2_a") == "my-run-2-a"
    assert dns_name("Ö") == "dsv3"
    assert len(dns_name("a" * 100)) == 40


@pytest.mark.parametrize("words", itertools.combinations(["torchrun", "kubernetes", "skypilot"], 2))
def test_there_is_one_way_at_a_time(words, dsv3):
    said = dsv3("launch", "pretrain/tiny", "--cluster", "cpu", *(f"--{word}" for word in words))
    assert (said.code, said.out) == (2, "")
    assert "are different ways to start a run: name one" in said.err
