"""What a stage may begin with, and what it may not."""

import itertools
import json
import shutil

import pytest

from dsv3_plugin.checkpoint import export_hf, import_hf, tracker
from dsv3_plugin.checkpoint.conversion import manifest_file
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.training import parent
from dsv3_plugin.training.parent import Parent
from tests.small_runs import MODEL, STEPS

PLAIN = ModelConfig(name="small", **MODEL)
YARN = {"rope_type": "yarn", "rotary_scaling_factor": 20.0, "original_max_position_embeddings": 64}


def changed(**fields):
    return ModelConfig(name="other", **MODEL | fields)


STRETCHED = changed(max_position_embeddings=1280, **YARN)


def of(model, length=64):
    return Parent("runs/before", None, model, length)


@pytest.mark.parametrize("below", [".", "checkpoints", f"checkpoints/iter_{STEPS:07d}"])
def test_a_run_its_checkpoints_and_one_of_them_are_the_same_parent(trained, below):
    found = parent.find(str(trained.folder / below))
    assert found.saved.iteration == STEPS
    assert found.folder == trained.checkpoints
    assert found.model == PLAIN
    assert found.trained_length == 64  # the recipe's, not the model's 128 positions


def test_a_run_whose_checkpoints_are_elsewhere_is_found(trained, tmp_path):
    recipe = (trained.folder / "recipe.yaml").read_text()
    assert "directory: null" in recipe
    (tmp_path / "recipe.yaml").write_text(
        recipe.replace("directory: null", f"directory: {trained.checkpoints}")
    )
    assert parent.find(str(tmp_path)).folder == trained.checkpoints


def test_a_parents_newest_may_be_damaged_and_the_whole_one_before_it_is_taken(trained, tmp_path):
    copy = shutil.copytree(trained.folder, tmp_path / "run")
    newest = copy / "checkpoints" / f"iter_{STEPS:07d}"
    next(newest.glob("*.distcp")).write_bytes(b"")
    tracker = copy / "checkpoints" / "latest_checkpointed_iteration.txt"
    assert parent.find(str(copy)).saved.iteration < STEPS
    assert tracker.read_text() == str(STEPS)  # the parent is another's
    with pytest.raises(UserError, match="is damaged"):
        parent.find(str(newest))


def test_a_strangers_hugging_face_folder_does_not_say_what_it_was_trained_on(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(PLAIN)))
    found = parent.find(str(tmp_path))
    assert (found.saved, found.trained_length) == (None, None)
    with pytest.raises(UserError, match="has positions for sequences of 128 tokens") as refused:
        parent.refuse_another(found, STRETCHED)
    assert f"max_position_embeddings in {tmp_path}/config.json to 64" in str(refused.value)
    (tmp_path / "config.json").write_text(
        json.dumps(hf_config(changed(max_position_embeddings=64)))
    )
    parent.refuse_another(parent.find(str(tmp_path)), STRETCHED)


def test_what_is_converted_says_how_long_the_sequences_were(exported, tmp_path):
    """The model has positions for twice as many tokens."""
    import_hf(exported, tmp_path / "weights")
    export_hf(tmp_path / "weights", tmp_path / "hf")
    for place in (exported, tmp_path / "weights", tmp_path / "hf"):
        found = parent.find(str(place))
        assert (found.trained_length, found.model.max_position_embeddings) == (64, 128)
        parent.refuse_another(found, STRETCHED)


def test_weights_that_were_imported_from_a_stranger_name_the_file_to_mend(exported, tmp_path):
    source = shutil.copytree(exported, tmp_path / "hf")
    (source / "manifest.json").unlink()
    import_hf(source, tmp_path / "weights")
    with pytest.raises(UserError, match="does not say on how long") as refused:
        parent.refuse_another(parent.find(str(tmp_path / "weights")), STRETCHED)
    assert f"{tmp_path}/weights/model.yaml to 64" in str(refused.value)


def moved(folder):
    shutil.move(folder, folder.with_name("elsewhere"))
    return folder.with_name("elsewhere")


def downloaded_again(folder):
    (folder / "config.json").touch()
    return folder


def unfinished(folder):
    place = folder.parent / "parent"
    (place / "INCOMPLETE").write_text((place / "manifest.json").read_text() + "\n")
    (place / "manifest.json").unlink()
    return moved(folder)


def damaged(folder):
    data = next((folder.parent / "parent").glob("release/*.distcp"))
    data.write_bytes(data.read_bytes()[:-64] + bytes(64))
    return folder


def cut_short(folder):
    (folder.parent / "parent" / "release" / "metadata.json").unlink()
    return folder


def rubbish(folder):
    (folder.parent / "parent" / "manifest.json").unlink()
    return folder


@pytest.mark.parametrize("then", [moved, downloaded_again, unfinished, damaged, cut_short, rubbish])
def test_a_hugging_face_parent_takes_the_place_of_whatever_lies_there(exported, tmp_path, then):
    """A run without a checkpoint may begin anew, with another parent."""
    source, place = shutil.copytree(exported, tmp_path / "hf"), tmp_path / "parent"
    parent.lay(parent.find(str(source)), place, lambda _: None)
    before = next(place.glob("release/*.distcp")).read_bytes()
    source = then(source)
    told = []
    parent.lay(parent.find(str(source)), place, told.append)
    assert any("which held something else" in sentence for sentence in told)
    assert tracker.newest_complete(place).release
    assert manifest_file.read(place)["source"] == str(source)
    assert next(place.glob("release/*.distcp")).read_bytes() == before


def test_a_run_and_a_hugging_face_folder_follow_one_another_as_parents(exported, trained, tmp_path):
    place = tmp_path / "parent"
    for _ in range(2):
        assert parent.lay(parent.find(str(exported)), place, lambda _: None) == place
        assert tracker.newest_complete(place).release
        assert parent.lay(parent.find(str(trained.folder)), place, lambda _: None) == (
            trained.checkpoints
        )
        assert tracker.newest_complete(place).iteration == STEPS
    assert tracker.newest_complete(trained.checkpoints).iteration == STEPS


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda place: None, "does not exist: name a run's folder"),
        (lambda place: place.touch(), "is not a folder"),
        (lambda place: place.mkdir(), "holds no whole checkpoint"),
        (
            lambda place: (place.mkdir(), (place / "recipe.yaml").write_text("name: x")),
            "has no whole checkpoint yet: wait for its first",
        ),
    ],
    ids=["nothing", "a file", "an empty folder", "a run before its first checkpoint"],
)
def test_what_is_no_parent_is_refused(tmp_path, make, sentence):
    place = tmp_path / "before"
    make(place)
    with pytest.raises(UserError, match=sentence):
        parent.find(str(place))


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        (of(PLAIN), PLAIN),
        (of(PLAIN), changed(max_position_embeddings=1024)),  # longer, without YaRN
        (of(PLAIN), STRETCHED),
        (of(STRETCHED), STRETCHED),
        (of(PLAIN), changed(moe_aux_loss_coeff=1e-3, init_method_std=0.006)),
    ],
    ids=["itself", "longer", "stretched", "stretched before", "trained otherwise"],
)
def test_weights_begin_what_computes_the_same_with_them(before, wanted):
    parent.refuse_another(before, wanted)


@pytest.mark.parametrize(
    ("before", "wanted", "sentence"),
    [
        (of(PLAIN), changed(moe_router_topk=4), "moe_router_topk is 2 there, .* says 4"),
        (of(PLAIN), changed(rotary_base=5e4), "rotary_base is 10000.0 there"),
        (of(PLAIN), changed(mtp_num_layers=None), "mtp_num_layers is 1 there"),
        (of(STRETCHED), PLAIN, "stretched by YaRN .*say model.rope_type: yarn"),
        (of(PLAIN, 128), STRETCHED, "set model.original_max_position_embeddings=128"),
        (
            of(STRETCHED),
            changed(**YARN | {"rotary_scaling_factor": 40.0}),
            "rotary_scaling_factor 20, and the recipe says 40: .*rotary_scaling_factor=20",
        ),
        (of(STRETCHED), changed(**YARN, mscale=0.7), "mscale 1, and the recipe says 0.7"),
        (
            of(STRETCHED),
            changed(**YARN | {"original_max_position_embeddings": 128}),
            "original_max_position_embeddings 64, and the recipe says 128",
        ),
    ],
)
def test_another_model_length_or_scale_is_refused(before, wanted, sentence):
    with pytest.raises(UserError, match=sentence):
        parent.refuse_another(before, wanted)


@pytest.mark.parametrize(
    "names",
    [
        ("pretrain/tiny", "extend/tiny-1k", "extend/tiny-4k"),
        ("pretrain/deepseek-v3", "extend/deepseek-v3-32k", "extend/deepseek-v3-128k"),
    ],
    ids=["tiny", "deepseek-v3"],
)
def test_shipped_recipes_follow_one_another(names):
    for before, after in itertools.pairwise(map(load_recipe, names)):
        assert after.from_ == before.directory
        parent.refuse_another(of(before.model, before.data.seq_length), after.model)


def test_the_recipe_that_makes_a_parent_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="runs/tiny does not exist: dsv3 train pretrain/tiny makes"):
        parent.find("runs/tiny")
    with pytest.raises(UserError, match="tiny-rl-base does not exist: dsv3 train rl/tiny-base mak"):
        parent.find("runs/tiny-rl-base")
    chain = (
        "tiny-1k does not exist: dsv3 train pretrain/tiny, then dsv3 train extend/tiny-1k make it;"
    )
    with pytest.raises(UserError, match=chain):
        parent.find("runs/tiny-1k")
    with pytest.raises(
        UserError, match="dsv3 train rl/tiny-sft makes it; or"
    ):  # and its own parent
        parent.find("runs/tiny-rl-sft")
