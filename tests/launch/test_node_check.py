"""What the check of a node looks at, and where it leaves what it found."""

import json
import sys
from pathlib import Path

from dsv3_plugin.launch import node_check
from dsv3_plugin.launch.node_verdicts import verdict_file
from dsv3_plugin.recipe.load import load_recipe


def test_room_is_looked_for_where_checkpoints_are_kept(tmp_path, monkeypatch):
    run, kept = tmp_path / "run", tmp_path / "kept"
    words = [f"directory={run}", f"checkpoint.directory={kept}"]
    (run / "launch").mkdir(parents=True)
    recipe = load_recipe("pretrain/tiny", words).to_yaml()
    (run / "launch" / "recipe.yaml").write_text(recipe, encoding="utf-8")
    free: dict[Path, int | None] = {run: 10, kept: 10}
    monkeypatch.setattr(node_check, "_free", lambda folder: free[folder])
    monkeypatch.setattr(node_check, "_ahead_of", lambda folder: None)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setattr(sys, "argv", ["node_check", str(run), "--free=1000"])
    node_check.main()
    said = json.loads(verdict_file(run, "n1").read_text(encoding="utf-8"))
    assert said == {"own": [], "shared": [f"10 bytes are free in {kept}, of 1.0 kB that it takes"]}
    free |= {run: None, kept: 2000}
    node_check.main()
    said = json.loads(verdict_file(run, "n1").read_text(encoding="utf-8"))
    assert said == {"own": [], "shared": [f"{run} cannot be written there"]}
