"""What version 0.1 left on a disk, today's code goes on with (see fixtures/written_by_0_1)."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion import manifest
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.checkpoint.inspect import inspect
from tests.checkpoint.samples import assert_same_bytes, read_tensors
from tests.small_runs import Command, numbers_of

FIXTURE = Path(__file__).parent / "fixtures" / "written_by_0_1"

EXPORTED = "2a34c08a2f9e58d10a8e731166f1ab52e3fa357d29d5ba060e534f5d37d45307"
"""SHA-256 of the tensors that version 0.1 exported of the run, in the order of their names."""

GENERATED = "The loss taltaltal"
"""How version 0.1's likeliest continuation begins."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the fixture: the folder in which version 0.1 was called."""
    return shutil.copytree(FIXTURE, tmp_path / "copy")


def test_a_run_goes_on_and_ends_where_version_0_1_ended_it(folder):
    ended = Command.forked("train", "recipe.yaml", cwd=folder).end()
    assert ended.code == 0, ended.output
    assert "Going on from step 6 of 12." in ended.output
    ours, theirs = (
        _scalars(folder / path) for path in ("runs/old/metrics.jsonl", "uninterrupted.jsonl")
    )
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() - their.keys() <= {"loss_scale", "mtp_acceptance_rate"}  # new since
        # Bit for bit on the processor that wrote it; another may sum in another order.
        assert {name: our[name] for name in their} == pytest.approx(their, rel=1e-5)


def test_its_checkpoint_is_inspected_exported_and_verified(folder, tmp_path):
    checkpoints = folder / "runs/old/checkpoints"
    found = inspect(checkpoints)
    assert found.complete
    assert (found.tensors, found.values, found.optimizer_bytes) == (48, 14_440, 77_056)
    export_hf(checkpoints, tmp_path / "exported")
    assert _digest(read_tensors(tmp_path / "exported")) == EXPORTED
    assert not verify(checkpoints, tmp_path / "exported").differences


def test_its_checkpoint_goes_on_with_a_text(folder):
    ended = Command.forked(
        "generate", "--checkpoint", "runs/old/checkpoints", "--prompt", "The loss",
        "--max-new-tokens", "24", cwd=folder,
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    assert ended.output.startswith(GENERATED)


def test_its_import_is_whole_and_goes_back_to_the_same_bytes(folder, tmp_path):
    source, imported = folder / "import/hf", folder / "import/imported"
    assert inspect(imported).complete
    assert not manifest.check(imported).differences
    assert not verify(source, imported).differences
    export_hf(imported, tmp_path / "back", fp8=True)
    assert_same_bytes(read_tensors(tmp_path / "back"), read_tensors(source))


def test_its_interrupted_import_goes_on(folder):
    source, target = folder / "import/hf", folder / "import/interrupted"
    _moved(target / "INCOMPLETE", source)
    before = [line.split(b'"')[1] for line in (target / "INCOMPLETE").read_bytes().splitlines()]
    assert before.count(b"done") == 5
    import_hf(source, target, resume=True)
    assert not (target / "INCOMPLETE").exists()
    assert not verify(folder / "import/imported", target).differences
    assert not verify(source, target).differences


def _scalars(metrics: Path) -> list[dict[str, float]]:
    """The numbers of every line that do not tell the time."""
    return [
        {key: value for key, value in line.items() if isinstance(value, int | float)}
        for line in numbers_of(metrics)
    ]


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _moved(journal: Path, source: Path) -> None:
    """Tell a journal where its source lies now, and when its files were changed."""
    first, *rest = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    header = json.loads(first)
    header["source"] = str(source.resolve())
    for name, state in header["source_files"].items():
        state[1] = (source / name).stat().st_mtime_ns
    journal.write_text("".join([json.dumps(header) + "\n", *rest]), encoding="utf-8")
