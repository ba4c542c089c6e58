"""A cluster of machines without a GPU, as its file says it, for tests of launching."""

from pathlib import Path
from typing import Any

import yaml

from dsv3_plugin.planner.cluster import shipped_clusters
from dsv3_plugin.recipe import shipped


def write_cluster(folder: Path, launch: dict[str, Any], nodes: int = 2, devices: int = 4) -> Path:
    """Write `two.yaml`: as many nodes of as many cores, with keys of `launch`; its path."""
    assert "cpu" in shipped_clusters()
    cpu = shipped.shipped_folder("launch/clusters") / "cpu.yaml"
    said = yaml.safe_load(cpu.read_text(encoding="utf-8"))
    said |= {
        "gpus": nodes * devices, "gpus_per_node": devices, "nvlink_domain": devices,
        "launch": launch,
    }  # fmt: skip
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    return path
