"""What is found wrong with a node; tools' answers as nvidia-smi and Linux give them."""

import os
from pathlib import Path

from dsv3_plugin.launch import node_check
from dsv3_plugin.launch.node_health import Disk, of_adapters, of_clock, of_disks, of_gpus
from dsv3_plugin.machine import Machine

ROWS = "0, 0, Not Active\n1, 0, Not Active\n"
LINKS = (
    "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n\t Link 0: 26.562 GB/s\n\t Link 1: 26.562 GB/s\n"
    "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)\n\t Link 0: 26.562 GB/s\n\t Link 1: <inactive>\n"
)


def test_gpus_that_are_all_there_and_well_are_nothing_to_say():
    assert [*of_gpus(2, 2, ROWS, "")] == []
    assert [*of_gpus(8, 2, "", "")] == []
    assert [*of_gpus(1, 1, "0, [N/A], [N/A]\n", "")] == []  # a card without ECC


def test_missing_broken_and_slowed_gpus_are_named():
    rows = "0, 3, Not Active\n1, 0, Active\n"
    said = [*of_gpus(2, 8, rows, LINKS)]
    assert said == [
        "2 GPUs, of 8 that the cluster's file says",
        "GPU 0 has 3 uncorrected errors of its memory",
        "GPU 1 is slowed down by its own protection (hw_slowdown)",
        "GPU 1 has an inactive NVLink (Link 1)",
    ]


def test_adapters_are_looked_at_where_nccls_settings_name_them():
    states = {"mlx5_0": "4: ACTIVE\n", "mlx5_1": "1: DOWN\n", "mlx5_10": "4: ACTIVE\n"}
    assert [*of_adapters(states, None)] == []
    assert [*of_adapters(states, "^mlx5_1")] == []
    assert [*of_adapters(states, "mlx5_0:1,mlx5_10")] == []
    assert [*of_adapters(states, "mlx5")] == ["the port of mlx5_1 is not active (1: DOWN)"]
    assert [*of_adapters(states, "=mlx5_0,mlx5")] == ["there is no adapter mlx5 (NCCL_IB_HCA)"]


def test_a_clock_may_be_off_by_less_than_a_second():
    assert [*of_clock(0.9)] == []
    assert [*of_clock(-0.9)] == []
    assert [*of_clock(12.34)] == ["its clock is 12.3 s ahead of that of the run's file system"]
    assert [*of_clock(-2.0)] == ["its clock is 2.0 s behind that of the run's file system"]


def test_disks_have_room():
    assert [*of_disks([Disk("/a", 10, 10)])] == []
    said = [*of_disks([Disk("/a", 2 * 10**9, 10**10), Disk("/b", None, 0)])]
    assert said == ["2.0 GB are free in /a, of 10.0 GB that it takes", "/b cannot be written there"]


def test_this_machine_is_well_until_more_is_asked_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(node_check, "_ADAPTERS", tmp_path / "none")
    run = tmp_path / "run"
    run.mkdir()
    assert [*node_check.problems(run, 0, {run: 1}, None)] == []
    (run / "file").write_bytes(b"")
    said = [*node_check.problems(run, 0, {run: 10**18, run / "file" / "below": 0}, None)]
    assert len(said) == 2
    assert said[0].endswith(f"free in {run}, of 1.0 EB that it takes")
    assert said[1] == f"{run / 'file' / 'below'} cannot be written there"


def test_nvidia_smi_is_asked_as_newer_and_as_older_drivers_call_it(tmp_path, monkeypatch):
    monkeypatch.setattr(node_check, "_ADAPTERS", tmp_path / "none")
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        '--query-gpu=*clocks_event_reasons*) echo "not a valid field"; exit 2 ;;\n'
        '--query-gpu=*clocks_throttle_reasons*) echo "0, 1, Not Active" ;;\n'
        'nvlink) printf "GPU 0: NVIDIA H100\\n\\t Link 3: <inactive>\\n" ;;\n'
        "esac\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(node_check.Machine, "here", lambda: Machine(1, False))
    assert [*node_check.problems(tmp_path, 1, {}, None)] == [
        "GPU 0 has 1 uncorrected errors of its memory",
        "GPU 0 has an inactive NVLink (Link 3)",
    ]


def test_a_clock_is_held_against_the_date_of_a_file(tmp_path, monkeypatch):
    assert abs(node_check._ahead_of(tmp_path)) < 1
    real = os.stat

    def dated_later(path, *more, **keys):
        found = real(path, *more, **keys)
        if ".clock-" not in str(path):
            return found
        values = [*found]
        values[8] += 3600
        return os.stat_result(values)

    monkeypatch.setattr(os, "stat", dated_later)
    assert -3601 < node_check._ahead_of(tmp_path) < -3590
    assert node_check._ahead_of(Path("/proc/none")) is None
