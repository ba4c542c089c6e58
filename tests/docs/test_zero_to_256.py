"""docs/zero-to-256.md: its jobs can be launched with the cluster's file that it shows."""

import pytest
import yaml

from tests.docs.pages import ROOT, Page

PAGE = Page(ROOT / "docs" / "zero-to-256.md")
CLUSTER = "my-h100.yaml"
JOBS = [words for words in PAGE.commands() if words[0] == "launch" and CLUSTER in words]


@pytest.fixture
def written(tmp_path, monkeypatch) -> dict[str, object]:
    """The cluster's file as the page says to make it, in the folder one is in; its `launch`."""
    shipped = (ROOT / "launch" / "clusters" / "h100.yaml").read_text(encoding="utf-8")
    [added] = PAGE.blocks("yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / CLUSTER).write_text(shipped + added, encoding="utf-8")
    return yaml.safe_load(added)["launch"]


@pytest.mark.parametrize("words", [JOBS[0], JOBS[-1]], ids=lambda words: words[1])
def test_a_job_is_planned_rehearsed_and_written(words, written, dsv3):
    """Its line, printed and not submitted: nobody here has a Slurm."""
    done = dsv3(*dict.fromkeys([*words, "--dry-run"]))
    assert done.code == 0, done.err
    assert f"--partition={written['partition']}" in done.out
    for name, value in written["environment"].items():
        assert f"export {name}={value}" in done.out
    if "deepseek-v3" in words[1]:
        assert "#SBATCH --nodes=33" in done.out  # 256 ranks on nodes of 8, and a spare


def test_there_are_some():
    assert [words[1] for words in JOBS] == ["pretrain/deepseek-v3-256"] * 2 + ["pretrain/tiny"]
