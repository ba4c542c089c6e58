"""The manifest names the same bytes alike on both sides, and what differs from it is found."""

import json
import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion import manifest, manifest_file
from dsv3_plugin.checkpoint.formats import dist_writer
from dsv3_plugin.cli.convert import outcome
from dsv3_plugin.errors import UserError
from tests.checkpoint.samples import overwrite, random_tensors, small_model, write_folder

MODEL = small_model()
NORM, NORM_KEY = "model.norm.weight", "decoder.final_layernorm.weight"
FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "source", MODEL, random_tensors(MODEL, "bf16"))


def checksums(folder):
    return {t["name"]: t["crc32"] for t in manifest_file.read(folder)["tensors"]}


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_joined_checksums_are_those_of_the_joined_bytes(a, b):
    assert manifest.joined(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)


def test_both_manifests_name_the_same_bytes_alike_however_they_are_cut(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(dist_writer, "_CHUNK_BYTES", 5000)
    import_hf(source, tmp_path / "t")
    export_hf(tmp_path / "t", tmp_path / "out", shard_size=100_000)
    imported, exported = checksums(tmp_path / "t"), checksums(tmp_path / "out")
    assert imported == {name: exported[name] for name in imported}
    assert len(imported) > 40
    for folder in ("t", "out"):
        assert "CRC-32" in manifest_file.read(tmp_path / folder)["checksum"]
        found = manifest.check(tmp_path / folder)
        assert (found.differences, found.equal) == ([], len(checksums(tmp_path / folder)))


def test_damaged_bytes_are_not_exported(source, tmp_path):
    import_hf(source, tmp_path / "t")
    overwrite(tmp_path / "t", NORM_KEY, b"\x01\x02")
    file = tmp_path / "t" / "release" / "__0_0.distcp"
    assert file.is_file()
    with pytest.raises(UserError, match=rf"{NORM} in {file} is damaged: its checksum"):
        export_hf(tmp_path / "t", tmp_path / "out")
    assert (tmp_path / "out" / "INCOMPLETE").exists()
    # A change on purpose is told by taking the manifest away.
    (tmp_path / "t" / "manifest.json").unlink()
    export_hf(tmp_path / "t", tmp_path / "out", resume=True)


def test_verify_of_one_folder_holds_it_against_its_manifest(source, tmp_path, dsv3):
    import_hf(source, tmp_path / "t")
    assert dsv3("verify", tmp_path / "t").code == 0
    overwrite(tmp_path / "t", NORM_KEY, b"\x01\x02")
    said = dsv3("verify", tmp_path / "t")
    assert said.code == 1
    assert "tensors are as the conversion's manifest says" in said.out
    assert f"1 differ:\n  {NORM}: its bytes in {tmp_path}/t/release/__0_0.distcp are" in said.out
    said = dsv3("verify", source)
    assert said.code == 2
    assert "no manifest.json" in said.err
    # What a training saves beside an import is not what the import's manifest is about.
    (tmp_path / "t" / "release").rename(tmp_path / "t" / "iter_0000001")
    (tmp_path / "t" / "latest_checkpointed_iteration.txt").write_text("1")
    assert dsv3("verify", tmp_path / "t").code == 2


def test_resume_of_a_finished_target_checks_it(source, tmp_path):
    for convert, reads, writes in (
        (import_hf, source, tmp_path / "t"), (export_hf, tmp_path / "t", tmp_path / "out"),
    ):  # fmt: skip
        assert not convert(reads, writes).was_complete
        report = convert(reads, writes, resume=True)
        assert report.was_complete
        line = outcome("imported", writes, report)
        assert "was complete already" in line
        assert "/s" not in line
    file = tmp_path / "out" / "model.safetensors"
    with file.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(bytes([file.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match="out was finished and has been damaged since"):
        export_hf(tmp_path / "t", tmp_path / "out", resume=True)
    overwrite(tmp_path / "t", NORM_KEY, b"\x01\x02")
    with pytest.raises(UserError, match=rf"t was finished and has been damaged since: {NORM}"):
        import_hf(source, tmp_path / "t", resume=True)
    (tmp_path / "t" / "release" / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"__0_0.distcp is missing"):
        import_hf(source, tmp_path / "t", resume=True)


@pytest.mark.parametrize("finished", [True, False])
def test_another_source_of_the_same_shapes_is_refused(source, tmp_path, monkeypatch, finished):
    if finished:
        import_hf(source, tmp_path / "t")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(dist_writer.DistLayout, "finish", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                import_hf(source, tmp_path / "t")
    before = (source / FIRST).stat()
    write_folder(source, MODEL, random_tensors(MODEL, "bf16", seed=1))
    os.utime(source / "config.json")
    assert (source / FIRST).stat().st_size == before.st_size
    with pytest.raises(UserError, match=r"another size or time of change"):
        import_hf(source, tmp_path / "t", resume=True)


def test_one_changed_shard_is_named(source, tmp_path):
    import_hf(source, tmp_path / "t")
    stat = (source / FIRST).stat()
    os.utime(source / FIRST, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(UserError, match=f"{FIRST} in .* had another size or time of change"):
        import_hf(source, tmp_path / "t", resume=True)
    header = json.loads((tmp_path / "t" / "manifest.json").read_text())["source_files"]
    assert header[FIRST] == [stat.st_size, stat.st_mtime_ns]
