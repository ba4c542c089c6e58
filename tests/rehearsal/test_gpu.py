"""What CUDA says of a cluster's device."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.cluster import load_cluster, shipped_clusters
from dsv3_plugin.rehearsal.gpu import gpu_of


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0)), ("NVIDIA A10", (8, 6)), ("NVIDIA L40S", (8, 9)),
        ("NVIDIA H20", (9, 0)), ("NVIDIA GH200 480GB", (9, 0)), ("NVIDIA GB200", (10, 0)),
        ("Tesla V100-SXM2-32GB", (7, 0)),
    ],
)  # fmt: skip
def test_each_device_can_what_it_can(name, capability):
    cluster = load_cluster("h100").model_copy(update={"gpu": name})
    assert gpu_of(cluster).capability == capability


def test_every_shipped_device_of_nvidias_is_known():
    for name in shipped_clusters():
        cluster = load_cluster(name)
        if cluster.gpu.startswith("NVIDIA"):
            assert gpu_of(cluster).capability >= (9, 0)


def test_what_is_not_known_is_not_taken_for_another():
    cluster = load_cluster("h100").model_copy(update={"gpu": "NVIDIA Z100"})
    with pytest.raises(UserError, match=r"NVIDIA Z100 \(gpu\) is not known here"):
        gpu_of(cluster)
