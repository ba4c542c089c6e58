"""Checkpoints that are damaged, of another model, or no checkpoints."""

import os

import pytest

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.formats.dist_metadata import read_contents
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.errors import UserError
from tests.checkpoint.samples import small_model


def test_truncated_checkpoint(checkpoint, tmp_path):
    data = checkpoint / "release" / "__0_0.distcp"
    os.truncate(data, data.stat().st_size - 100)
    with pytest.raises(UserError, match=r"__0_0.distcp is cut short, .* should end at byte"):
        export_hf(checkpoint, tmp_path / "out")
    data.unlink()
    with pytest.raises(UserError, match=r"__0_0.distcp is missing, which holds"):
        export_hf(checkpoint, tmp_path / "out")


def test_checkpoint_with_damaged_container(checkpoint, tmp_path):
    key = "decoder.final_layernorm.weight"
    _, _, place = read_contents(checkpoint / "release").tensors[key].chunks[0]
    with (checkpoint / "release" / place.file).open("r+b") as handle:
        handle.seek(place.position + place.length - 40)
        handle.write(bytes(40))
    with pytest.raises(UserError, match=f"{key} in .*distcp"):
        export_hf(checkpoint, tmp_path / "out")


def test_checkpoint_of_another_model(checkpoint, tmp_path):
    small_model(moe_ffn_hidden_size=80, moe_shared_expert_intermediate_size=80).write(
        checkpoint / "model.yaml"
    )
    with pytest.raises(UserError, match=r"linear_fc1.weight in .*distcp has shape .* model.yaml"):
        export_hf(checkpoint, tmp_path / "out")
    small_model(num_layers=2, moe_layer_freq="[0,1]").write(checkpoint / "model.yaml")
    with pytest.raises(UserError, match=r"decoder.layers.2.* is no weight of the model"):
        export_hf(checkpoint, tmp_path / "out")
    (checkpoint / "model.yaml").unlink()
    for said in (
        "hf_config.json --out .*/model.yaml writes it again",
        " CONFIG_JSON --out .* writes it of",
    ):
        with pytest.raises(UserError, match=rf"neither a model.yaml.*dsv3 model from-hf.*{said}"):
            export_hf(checkpoint, tmp_path / "out")
        assert "dsv3 model from-hf" in inspect(checkpoint).advice[0]
        (checkpoint / "hf_config.json").unlink(missing_ok=True)


def test_metadata_that_is_missing_or_cut_short_says_the_way_out(checkpoint, tmp_path):
    metadata = checkpoint / "release" / ".metadata"
    os.truncate(metadata, 100)
    with pytest.raises(UserError, match=r"\.metadata is damaged \(.*\): copy it again from where"):
        export_hf(checkpoint, tmp_path / "out")
    metadata.unlink()
    with pytest.raises(UserError, match=r"\.metadata is missing, copy it again from where"):
        export_hf(checkpoint, tmp_path / "out")


def test_multi_token_prediction_that_is_there_is_not_left_out(source, tmp_path):
    with pytest.raises(UserError, match=r"this folder has it, so leave --without-mtp out"):
        import_hf(source, tmp_path / "out", without_mtp=True)


def test_directions_mixed_up(source, checkpoint, tmp_path):
    with pytest.raises(UserError, match="is a Hugging Face folder, not a Megatron checkpoint"):
        export_hf(source, tmp_path / "out")
    with pytest.raises(UserError, match="is a Megatron checkpoint, not a Hugging Face folder"):
        import_hf(checkpoint, tmp_path / "out")
