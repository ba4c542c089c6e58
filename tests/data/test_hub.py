"""Tokenizers by their names on Hugging Face's hub; the hub itself is not asked."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from dsv3_plugin.data.hub import tokenizer_folder_of
from dsv3_plugin.errors import UserError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What the cache and the hub answer, and what they were asked."""
    asked = []
    answers = {"cache": LocalEntryNotFoundError("no"), "hub": OSError("no route")}

    def download(**wanted):
        asked.append(wanted)
        answer = answers["cache" if wanted.get("local_files_only") else "hub"]
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return answers, asked


@pytest.fixture
def there(tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("choice", ["/no/such", "./a/b", "a/b/", "a/b/c", "name", "~/x", "own/er"])
def test_what_is_a_path_is_not_asked_for(hub, tmp_path, choice):
    (tmp_path / "own" / "er").mkdir(parents=True)
    assert isinstance(tokenizer_folder_of(choice), Path)
    assert not hub[1]


def test_a_run_stands_for_its_tokenizer(hub, tmp_path):
    """That of its weights, or of its data before there are any; a tokenizer's folder for itself."""
    run = tmp_path / "runs" / "tiny"
    iteration = run / "checkpoints" / "iter_0000004"
    for made in (run / "data" / "member1" / "tokenizer", run / "checkpoints" / "tokenizer"):
        made.mkdir(parents=True)
        (made / "vocab.json").write_text("{}")
        (run / "recipe.yaml").write_text("directory: runs/tiny\n")
        if "checkpoints" in made.parts:
            iteration.mkdir()
        assert tokenizer_folder_of("runs/tiny").resolve() == made
    for folder in (iteration, made.parent, made):
        assert tokenizer_folder_of(str(folder)).resolve() == made
    assert tokenizer_folder_of("runs/tiny/data").name == "tokenizer"
    assert not hub[1]


def test_the_cache_is_asked_before_the_hub(hub, there):
    answers, asked = hub
    answers["hub"] = there
    assert tokenizer_folder_of("deepseek-ai/DeepSeek-V3") == there
    assert [bool(wanted.get("local_files_only")) for wanted in asked] == [True, False]
    assert not any(pattern.endswith(".py") for pattern in asked[1]["allow_patterns"])
    answers |= {"cache": there, "hub": OSError()}
    assert tokenizer_folder_of("deepseek-ai/DeepSeek-V3") == there


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (OSError("no route to host"), "it cannot be reached"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        ("empty", "it holds no tokenizer"),
    ],
)
def test_what_cannot_be_had_is_said_with_the_way_out(hub, tmp_path, answer, why):
    (tmp_path / "empty").mkdir()
    hub[0]["hub"] = tmp_path / answer if isinstance(answer, str) else answer
    with pytest.raises(UserError) as refusal:
        tokenizer_folder_of("owner/name")
    assert f"Hugging Face's hub ({why})" in str(refusal.value)
    assert "hf download owner/name" in str(refusal.value)
