"""Where weights are is said to those who name another place."""

from pathlib import Path

import pytest

from dsv3_plugin.checkpoint import export_hf, import_hf, tracker
from dsv3_plugin.checkpoint.absent import neither
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import TRACKER


@pytest.fixture
def run(tmp_path):
    """A folder that looks like a run's with checkpoints."""
    (tmp_path / "the run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "the run" / "checkpoints" / TRACKER).write_text("3")
    return tmp_path / "the run"


def test_a_run_is_no_source_of_an_import(run, tmp_path):
    for folder in (run, run / "checkpoints"):
        way = rf"is a Megatron checkpoint, .*: dsv3 export '{folder}' HF_DIR is the way from there"
        with pytest.raises(UserError, match=way):
            import_hf(folder, tmp_path / "t")


def test_what_is_not_there_is_named_as_the_command_takes_it(tmp_path):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(
        UserError, match=r"exist: name a Hugging Face folder, with its config\.json"
    ):
        import_hf(nowhere, tmp_path / "t")
    with pytest.raises(UserError, match=r"exist: name a checkpoint, or the folder of a run"):
        export_hf(nowhere, tmp_path / "t")
    with pytest.raises(UserError, match=r"exist: name a Hugging Face folder, a checkpoint, or the"):
        verify(nowhere, nowhere)


def test_a_shipped_model_has_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'tiny' is a shipped model, .* has no weights: name a ch"):
        export_hf("tiny", tmp_path / "t")


@pytest.mark.parametrize(
    ("named", "shown", "model"),
    [
        ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3 does not", "deepseek-ai/DeepSeek-V3"),
        ("https://huggingface.co/a/b/tree/main", "https://huggingface.co/a/b/tree/main is", "a/b"),
        ("hf://a/b", "hf://a/b is an address", "a/b"),
        ("s3://bucket/folder/model", "s3://bucket/folder/model is an address", None),
    ],
)
def test_what_is_elsewhere_is_not_downloaded(named, shown, model, tmp_path):
    with pytest.raises(UserError, match="nothing is downloaded") as refused:
        import_hf(Path(named), tmp_path / "t")
    assert str(refused.value).startswith(shown)
    way = f"hf download {model} --local-dir FOLDER makes" if model else "copy it into a folder"
    assert way in str(refused.value)


def test_a_name_of_the_hub_in_the_place_of_a_checkpoint(tmp_path):
    way = r"hf download a/b --local-dir FOLDER makes .*, and dsv3 import FOLDER CHECKPOINT a check"
    with pytest.raises(UserError, match=way):
        tracker.find("a/b")


def test_weights_without_a_configuration(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert "no config.json, which says" in str(neither(tmp_path))
    assert "download it, too." in str(neither(tmp_path))


def test_weights_below_are_named(run):
    assert str(neither(run.parent)).endswith(f": name one inside, such as {run}.")
    (run.parent / "model").mkdir()
    (run.parent / "model" / "config.json").touch()
    assert str(neither(run.parent)).endswith(f": name one inside, such as {run.parent}/model.")


def test_a_model_of_the_hub_is_no_file(dsv3):
    said = dsv3("model", "from-hf", "deepseek-ai/DeepSeek-V3")
    assert (said.code, "hf download deepseek-ai/DeepSeek-V3 --local-dir" in said.err) == (2, True)
