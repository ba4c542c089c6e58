"""Clusters: those that come with the package, and what is wrong with a file, each a sentence."""

import copy

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.cluster import Cluster, load_cluster, shipped_clusters
from dsv3_plugin.planner.make import refuse_impossible
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.shipped import shipped_folder
from dsv3_plugin.recipe.validation import validate

SHIPPED = ("b200", "cpu", "gb200", "gb300", "h100", "h200", "h800", "mi300x")


def test_those_that_come_with_the_package():
    assert tuple(shipped_clusters()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_cluster_is_what_it_says(name):
    cluster = load_cluster(name)
    assert cluster.name == name
    shares = {key: share for key, share in cluster.efficiency if share is not None}
    # Sentences, not a word: what was measured or published, and where.
    assert all(len(share.source.split()) >= 3 for share in shares.values())
    # Nothing attains its peak; and what a link attains is near what is said of it.
    assert all(share.value < 0.95 for share in shares.values())
    peaks = cluster.peak_tflops
    if name != "cpu":
        # Tensor cores: dense FP8 is twice dense BF16. A rate with sparsity in one of them is not.
        assert peaks.fp8 == pytest.approx(2 * peaks.bf16, rel=1e-3)
        # CUDA reports as many bytes as the card's name has GB, or more.
        assert cluster.memory_gb > float(cluster.gpu.split()[-1].removesuffix("GB"))
        assert cluster.nvlink.gb_per_second > cluster.network.gb_per_second
        assert cluster.price_per_gpu_hour > 0
    assert cluster.gpus % cluster.gpus_per_node == 0


@pytest.mark.parametrize("name", ["h800", "h100", "h200"])
def test_the_full_recipe_has_room_on_hopper(name):
    refuse_impossible(load_recipe("pretrain/deepseek-v3"), load_cluster(name))


def test_the_cluster_of_the_report():
    h800 = load_cluster("h800")
    assert (h800.gpus, h800.gpus_per_node, h800.price_per_gpu_hour) == (2048, 8, 2.0)
    # The report: 160 GB/s of NVLink, 50 of InfiniBand, of which DeepEP attains most.
    nvlink = h800.nvlink.gb_per_second * h800.efficiency.nvlink.value
    network = h800.network.gb_per_second * h800.efficiency.network.value
    assert (nvlink, network) == (pytest.approx(160, rel=0.05), pytest.approx(44, rel=0.02))
    assert load_cluster("gb200").nvlink_domain == load_cluster("gb300").nvlink_domain == 72


@pytest.mark.parametrize("name", SHIPPED)
def test_auto_in_a_recipe_is_what_its_nodes_have(name):
    machine = load_cluster(name).machine
    on_gpu = name != "cpu"
    assert machine.gpus == (load_cluster(name).gpus_per_node if on_gpu else 0)
    assert machine.transformer_engine == on_gpu


def h800() -> dict:
    return load_cluster("h800").model_dump(mode="json", by_alias=True)


def changed(path: str, value: object) -> dict:
    """The H800 cluster with one key set, or removed (`...`)."""
    data = copy.deepcopy(h800())
    *parents, last = path.split(".")
    inner = data
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("gpuss", 8, "unknown key 'gpuss' (nearest: 'gpus')"),
        (
            "efficiency.gemm_bf61",
            0.5,
            "unknown key 'efficiency.gemm_bf61' (nearest: 'efficiency.gemm_bf16')",
        ),
        ("efficiency.network", 0.8, "values: write {value: 0.8, source: where it is from}."),
        ("launch", ["partition"], "mapping of keys to values: write {partition: …}."),
        ("launch", {"container": {"runtime": "pyxis"}}, "image' is missing: name what pyxis or ap"),
        ("launch", {"container": {"image": "x"}}, "runtime' is missing: say what starts images"),
        ("memory_gb", ..., "the key 'memory_gb' is missing"),
        ("efficiency.memory.source", ..., "the key 'efficiency.memory.source' is missing"),
        ("efficiency.memory.source", "", "'efficiency.memory.source' is ''; it must not be empty"),
        ("efficiency.nvlink.value", 0, "efficiency.nvlink.value: 0 is no share of a peak"),
        ("efficiency.nvlink.value", 1e-300, "1e-300 is no share of a peak"),
        ("efficiency.gemm_bf16.value", 80, "80 is no share of a peak, between 0.001 and 1"),
        ("memory_gb", -80, "memory_gb: -80 is no amount between 1e-06 and 1e+09"),
        ("memory_gb", 1e300, "memory_gb: 1e+300 is no amount"),
        ("memory_gb", float("inf"), "'memory_gb' is .inf; it must be a finite number"),
        ("memory_gb", "80 GB", "is '80 GB'; it must be a valid number, of GB: write 80."),
        ("memory_gb", "80 GiB", "of GB: 80 GiB are 85.8993, so write 85.8993."),
        ("memory_gb", "80 potatoes", "it must be a valid number, of GB, without a unit."),
        ("launch", {"time_limit_hours": "24:00:00"}, "it must be a valid number, of hours: wri"),
        ("launch", {"time_limit_hours": "1:30:00"}, ", of hours: write 1.5."),
        ("launch", {"time_limit_hours": "1-12"}, "valid number, of hours, without a unit."),
        ("network.gb_per_second", "50 GB/s", "valid number, of GB per second: write 50."),
        (
            "network.gb_per_second",
            "400Gb/s",
            "'network.gb_per_second' is '400Gb/s'; it must be a valid number, of GB per second: "
            "400 Gb/s, which are bits, are 50, so write 50.",
        ),
        ("network.gb_per_second", "400 Gbps", "400 Gbps, which are bits, are 50, so write 50."),
        ("network.gb_per_second", "400 Gbit/s", "which are bits, are 50, so write 50."),
        ("network.gb_per_second", "50 GBps", ", of GB per second: write 50."),
        (
            "network.gb_per_second",
            "400gb/s",
            "write 400 where these are bytes, and 50 where they are bits, as data sheets of",
        ),
        ("network.gb_per_second", "400G", "write 400 where these are bytes, and 50 where they"),
        ("network.gb_per_second", "400 GbE", "400 Gbit/s, which are bits, are 50, so write 50."),
        ("network.gb_per_second", "400 Gbit", "which are bits, are 50, so write 50."),
        ("network.gb_per_second", "400 gigabits per second", "which are bits, are 50, so write 50"),
        ("network.gb_per_second", "2x400Gb/s", "of GB per second, without a unit."),
        ("network.gb_per_second", "50", "of GB per second: write 50, without quotes."),
        ("memory_gb_per_second", "3.35 TB", "3.35 TB are 3350, so write 3350."),
        ("network.latency_us", "3.7 microseconds", "of microseconds: write 3.7."),
        ("launch", {"time_limit_hours": "1-00:30:00"}, ", of hours: write 24.5."),
        ("memory_gb_per_second", "3.35 TB/s", "3.35 TB/s are 3350, so write 3350."),
        ("storage_gb_per_second", "800 MB/s", "800 MB/s are 0.8, so write 0.8."),
        ("memory_gb", "80g", "of GB: write 80."),
        ("memory_gb", "80 Gb", "of GB: write 80."),
        ("memory_gb", "640 Gbit", "640 Gbit, which are bits, are 80, so write 80."),
        ("network.latency_us", "3700 ns", "of microseconds: 3700 ns are 3.7, so write 3.7."),
        ("peak_tflops.bf16", "2.25 PFLOPS", "2.25 PFLOPS are 2250, so write 2250."),
        ("peak_tflops.bf16", "989 TFLOP/s", "of TFLOP per second: write 989."),
        ("launch", {"time_limit_hours": "90m"}, "of hours: 90 m are 1.5, so write 1.5."),
        ("launch", {"time_limit_hours": "2 days"}, "of hours: 2 days are 48, so write 48."),
        ("network.gb_per_second", 0, "network.gb_per_second: 0 is no amount"),
        ("network.latency_us", -1, "'network.latency_us' is -1; it must be greater than or equal"),
        ("price_per_gpu_hour", -2, "'price_per_gpu_hour' is -2; it must be greater than or equal"),
        ("gpus", 0, "'gpus' is 0; it must be greater than 0"),
        ("gpus", 2.5, "'gpus' is 2.5; it must be a valid integer"),
        ("gpus", "thirty-two", "'gpus' is 'thirty-two'; it must be a valid integer."),
        (
            "gpus",
            2047,
            "gpus 2047 is no whole number of nodes of 8 (gpus_per_node): take 2040 or 2048.",
        ),
        (
            "nvlink_domain",
            12,
            "nvlink_domain 12 is neither whole nodes of 8 (gpus_per_node) nor a part of one",
        ),
        ("peak_tflops.fp8", 500, "500 TFLOP/s in FP8 is below that of 989.4 in BF16"),
        ("peak_tflops.fp8", None, "together or not at all: give both, or set both to null."),
        ("efficiency.gemm_fp8", None, "together or not at all: give both, or set both to null."),
        ("ends.gemm", -1, "'ends.gemm' is -1; it must be greater than or equal to 0"),
        ("nvlink", 200, "'nvlink' is 200; it must be a mapping of keys to values"),
    ],
)
def test_what_no_cluster_is(path, value, sentence, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml_text.dump(changed(path, value)))
    with pytest.raises(UserError) as error:
        load_cluster(file)
    assert str(error.value).startswith(f"{file}: ")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("environment", {"UCX": True}, """quotes, UCX: "true" or UCX: "1"."""),
        ("environment", {"NCCL_DEBUG": None}, "NCCL_DEBUG has no value: give it one, or leave it"),
        ("environment", {"NCCL_DEBUG": ["WARN"]}, "NCCL_DEBUG is ['WARN'], and a variable is one"),
        ("environment", {"A": "a\nb"}, "A is 'a\\nb', and a variable is one line of text: put it"),
        ("environment", ["NCCL_DEBUG=WARN"], "is no mapping of names to values: write {NCCL_DEBUG"),
        ("environment", "A=1 B=2", "write {A: '1', B: '2'}."),
        ("environment", ["x"], "write {NCCL_DEBUG: WARN}."),
        ("environment", {"MASTER_ADDR": "n1"}, "MASTER_ADDR in environment would be overwritten: "),
        ("environment", {"SLURM_CPU_BIND": "cores"}, "says by it that ranks use all CPUs of their"),
        ("environment", {"SLURM_PROCID": 0}, "would be the same for all ranks and jobs, which"),
        (
            "environment",
            {"PATH": "/opt/bin:$PATH"},
            "launch.environment: PATH is '/opt/bin:$PATH', and no shell reads what stands in "
            "environment: have one set it, in launch, by setup: ['export PATH=/opt/bin:$PATH'].",
        ),
        ("environment", {"HF_HOME": "~/hf"}, "by setup: [export HF_HOME=~/hf]."),
        ("environment", {"A": "x y ${B}"}, """by setup: ['export A="x y ${B}"']."""),
        ("environment", {"A": "~/my cache"}, """by setup: [export A="$HOME/my cache"]."""),
        ("environment", {"A": '{"x": "$B"}'}, """['export A="{\\"x\\": \\"$B\\"}"']."""),
        ("environment", {"CUDA_VISIBLE_DEVICES": 0}, "which GPUs a job has its launcher says, and"),
        ("environment", {"ROCR_VISIBLE_DEVICES": "0,1"}, "would be the same on all nodes: which G"),
        ("scratch_gb", 100, "scratch_gb: 100 is what has to be free in scratch, and there is no"),
        ("venv", "/v/.venv/bin/activate", "lies in an environment: name its folder, /v/.venv."),
        ("venv", "/v/.venv/bin/", "'/v/.venv/bin/' lies in an environment: name its folder, /v/.v"),
        ("setup", "module load cuda/13.0", "is no list: write [module load cuda/13.0]."),
        ("setup", ["a\nb"], "launch.setup.0: 'a\\nb' has a line's end"),
        ("options", "--constraint=ib --x", "is no list: write [--constraint=ib, --x]."),
        ("options", ["constraint=ib"], "write it as --constraint=ib, without blanks"),
        ("container", "", "launch.container: it is empty: leave it out."),
        ("container", {"runtime": "pyxis", "image": ""}, "container.image: it is empty: name an"),
        ("container", "nvcr.io/a", "write {runtime: pyxis, image: nvcr.io/a}."),
        ("container", {"runtime": "singularity", "image": "x"}, "write apptainer."),
        ("container", {"runtime": "pyxis", "image": "x", "mounts": ["data"]}, "such as /data:/da"),
        ("container", {"runtime": "pyxis", "image": "x", "mounts": "/a,/b"}, "write [/a, /b]."),
        ("exclusive", "maybe", "'launch.exclusive' is 'maybe'; it must be true or false."),
        ("scratch", "local/scratch", "is relative, and nodes have no folder that it would be"),
        ("venv", "", "launch.venv: it must not be empty: leave it out."),
        ("partition", "", "launch.partition: it must not be empty: leave it out."),
        ("partition", "two words", "write one word, such as gpu or team-1."),
    ],
)
def test_how_jobs_cannot_be_started(key, value, sentence):
    with pytest.raises(UserError) as error:
        validate(Cluster, h800() | {"launch": {key: value}}, "mine.yaml")
    assert str(error.value).startswith("mine.yaml: ")
    assert sentence in str(error.value)


def test_a_temporary_folder_is_said_once():
    launch = {"scratch": "/local", "environment": {"TMPDIR": "/elsewhere"}}
    with pytest.raises(UserError, match="TMPDIR in environment would be overwritten by scratch"):
        validate(Cluster, h800() | {"launch": launch}, "mine.yaml")
    environment = {"TMPDIR": "/elsewhere", "MASTER_PORT": 29500}
    validate(Cluster, h800() | {"launch": {"environment": environment}}, "mine.yaml")


def test_numbers_are_written_where_a_text_is_meant():
    launch = {
        "environment": {"NCCL_IB_GID_INDEX": 3, "SHARE": 0.5, "ODD": "007", "COST": "5$"},
        "account": 1234,
        "container": {"runtime": "pyxis", "image": "x", "mounts": ["/data", "/a:/b:ro"]},
    }  # fmt: skip
    read = validate(Cluster, h800() | {"launch": launch}, "mine.yaml").launch
    assert read.environment == {
        "NCCL_IB_GID_INDEX": "3",
        "SHARE": "0.5",
        "ODD": "007",
        "COST": "5$",
    }
    assert read.account == "1234"
    assert read.container.mounts == ["/data:/data", "/a:/b:ro"]


def test_a_file_of_ones_own_is_called_as_it_is(tmp_path):
    file = tmp_path / "two words.yaml"
    file.write_text(yaml_text.dump(changed("name", ...)))
    mine = load_cluster(file)
    assert mine == load_cluster("h800").model_copy(update={"name": "two words"})
    assert Cluster.model_validate(mine.model_dump(by_alias=True)) == mine


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("h80", "'h80' is neither a file nor a shipped cluster (nearest: 'h800')."),
        ("xyz", "(known: b200, cpu, gb200, gb300, h100, h200, h800, mi300x)."),
        ("nowhere.yaml", "nowhere.yaml: no such cluster file: name one that is there, such as a"),
        ("h100.yaml", "no such cluster file: h100 comes with dsv3, name it without .yaml."),
        ("of/ours", "neither a file nor a shipped cluster: name one that is there, such as a copy"),
        (".", "is a folder, and a cluster is asked for"),
        ("a\0b", "is neither a file nor a shipped cluster"),
        ("a" * 5000, "is neither a file nor a shipped cluster"),
        ("h\n800", "is neither a file nor a shipped cluster (nearest: 'h800')."),
    ],
)
def test_a_name_of_nothing(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_cluster(name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "launch: {partition: gpu}\n"])
def test_a_file_of_nothing_begins_with_a_shipped_one(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"begin with a copy of .*launch/clusters/h100\.yaml, and"):
        load_cluster(file)
    with pytest.raises(UserError, match=r"mine\.yml: no such cluster file: .*mine\.yaml is one"):
        load_cluster(tmp_path / "mine.yml")


@pytest.mark.parametrize("folder", ["clusters of ours", "h800", "größe.yaml", "a;rm -rf b"])
def test_folders_of_odd_names(folder, tmp_path, monkeypatch):
    """A folder is no cluster, what lies in it is one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.yaml").write_text(yaml_text.dump(h800()))
    assert load_cluster(f"{folder}/mine.yaml").gpus == 2048
    if folder == "h800":  # a name that comes with the package is found beside a folder of that name
        assert load_cluster(folder).name == "h800"
        return
    with pytest.raises(UserError, match="is a folder, and a cluster is asked for"):
        load_cluster(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gpus: 8\nmemory_gb: 80\n", "the key 'gpu' is missing"),
        ("gpus: [1, 2", "line 1"),
        ("gpus: 8\ngpus: 16\n", "line 2: the key 'gpus' is given twice"),
        ("- h800\n", "holds list, not a mapping of keys to values"),
    ],
)
def test_what_is_no_mapping(text, sentence, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_cluster(file)
    assert str(error.value).startswith(str(file))
    assert sentence in str(error.value)


def test_a_file_that_is_no_clusters_is_called_what_it_is(tmp_path):
    (tmp_path / "best.yaml").write_text("base: pretrain/tiny\nparallel: {processes: 2}\n")
    (tmp_path / "model.yaml").write_text("num_layers: 4\n")
    for named, what in (
        (tmp_path / "best.yaml", "a recipe"),
        ("pretrain/tiny", "a recipe"),
        (tmp_path / "model.yaml", "a model"),
    ):
        with pytest.raises(UserError) as refused:
            load_cluster(named)
        assert str(refused.value) == (
            f"{named} is {what}, and a cluster's file is asked for, which says what nodes have and "
            "how jobs are started: name a cluster that comes with dsv3 "
            f"({', '.join(SHIPPED)}) or a copy of one; a recipe is named without --cluster."
        )


def test_a_cluster_in_the_place_of_a_recipe_is_called_what_it_is(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text((shipped_folder("launch/clusters") / "h100.yaml").read_text())
    for named in (str(mine), "h100"):
        with pytest.raises(UserError) as refused:
            load_recipe(named)
        assert str(refused.value) == (
            f"{named} is a cluster, and a recipe is asked for: name a recipe first, such as "
            f"pretrain/tiny, and this with --cluster {named}."
        )
