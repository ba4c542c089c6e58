"""Places that cannot be written: what is in the way, full disks, failing syncs."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion import convert, journal
from dsv3_plugin.checkpoint.conversion.weights import open_weights
from dsv3_plugin.errors import UserError
from tests.checkpoint.conversion.damage import refused


def test_target_that_is_in_use(source, tmp_path):
    target = tmp_path / "t"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        import_hf(source, target)
    assert [p.name for p in target.iterdir()] == ["precious.txt"]
    with pytest.raises(UserError, match="not empty"):
        import_hf(source, source)


def test_target_that_is_taken_is_refused_before_a_plan_is_told(source, checkpoint, tmp_path, dsv3):
    export_hf(checkpoint, tmp_path / "hf")
    (tmp_path / "file").touch()
    finished = "is not empty, it holds a conversion that is finished: check it with --resume, or"
    for verb, reads, target, sentence in (
        ("import", source, checkpoint, "is not empty, it holds a finished import of "),
        ("export", checkpoint, tmp_path / "hf", finished),
        ("import", source, tmp_path / "file", "is a file: name a new folder."),
        ("export", checkpoint, tmp_path / "file", "is a file: name a new folder."),
        ("import", source, tmp_path, "lie inside each other"),
    ):
        said = dsv3(verb, reads, target)
        assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1)
        assert sentence in said.err
    shutil.copytree(checkpoint, tmp_path / "another")
    said = dsv3("export", tmp_path / "another", tmp_path / "hf")
    assert f"it holds a finished export of {checkpoint}: choose another folder." in said.err
    said = dsv3("export", checkpoint, tmp_path / "hf", "--resume")
    assert (said.code, "was complete already" in said.out) == (0, True)


def test_target_that_cannot_be_written(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: not a directory"):
        import_hf(source, tmp_path / "file" / "t")
    opened = os.open

    def read_only(path, flags, *mode, **options):
        if flags & os.O_CREAT and str(path).endswith(".distcp"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", read_only)
    refused(source, tmp_path / "t", "__0_0.distcp", "read-only file system")


def test_disk_too_small_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(UserError, match=r"needs [\d.]+ \w+ more, its disk has [\d.]+ \w+ free"):
        import_hf(source, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_disk_that_fills_up(source, checkpoint, tmp_path, monkeypatch):
    written, pwrite = [], os.pwrite

    def full(descriptor, data, position):
        if len(written) > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(data))
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    refused(source, tmp_path / "t", "disk is full", "__0_0.distcp", "--resume")
    written.clear()
    with pytest.raises(UserError, match="disk is full"):
        export_hf(checkpoint, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    monkeypatch.undo()
    import_hf(source, tmp_path / "t", resume=True)
    export_hf(checkpoint, tmp_path / "out", resume=True)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        stored = open_weights(tmp_path / "t").rows(name, 0, tensor.shape[0])
        assert torch.equal(tensor, stored)


def test_disk_that_is_full_names_the_tensor(source, tmp_path, monkeypatch):
    def full(descriptor, data, position):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    sentence = refused(source, tmp_path / "t", "disk is full", "__0_0.distcp", workers=1)
    assert re.search(r"full: \S+weight in \S+distcp cannot be written", sentence)


def test_sync_that_fails_vouches_for_nothing(source, checkpoint, tmp_path, monkeypatch):
    """The kernel forgets what it could not write: the next sync succeeds, the bytes are gone."""
    fsync, failures = os.fsync, []

    def lossy(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith((".distcp", ".part")) and not failures:
            failures.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", lossy)
    for committed in (0, 1 << 40):  # with every tensor, and at the end
        monkeypatch.setattr(journal, "_COMMIT_BYTES", committed)
        failures.clear()
        refused(source, tmp_path / f"t{committed}", "disk is full", "__0_0.distcp")
        assert (tmp_path / f"t{committed}" / "INCOMPLETE").read_bytes().count(b"\n") == 1
        failures.clear()
        with pytest.raises(UserError, match=r"disk is full: .*part cannot be written"):
            export_hf(checkpoint, tmp_path / f"out{committed}")
        assert (tmp_path / f"out{committed}" / "INCOMPLETE").read_bytes().count(b"\n") == 1


def test_a_rename_that_fails_is_a_sentence(checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(convert.manifest, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_hf(checkpoint, tmp_path / "out")
    part = tmp_path / "out" / "model.safetensors.part"
    part.rename(tmp_path / "out" / "model.safetensors")

    def refuse(self, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="out cannot be written: read-only file system"):
        export_hf(checkpoint, tmp_path / "out", resume=True)


def test_target_inside_the_source_and_the_other_way_round(source, checkpoint, tmp_path):
    for convert_, reads in ((import_hf, source), (export_hf, checkpoint),
                            (export_hf, checkpoint / "release")):  # fmt: skip
        before = sorted(reads.rglob("*"))
        with pytest.raises(UserError, match="lie inside each other: choose a folder beside"):
            convert_(reads, reads / "new" / "t")
        with pytest.raises(UserError, match="lie inside each other"):
            convert_(reads, tmp_path)
        assert sorted(reads.rglob("*")) == before
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(UserError, match="lie inside each other"):
        import_hf(source, tmp_path / "link" / "t")
