"""A checkpoint and the description beside it are of one model, where no shape tells."""

import shutil

import pytest

from dsv3_plugin.checkpoint.formats.dist_metadata import read_contents
from dsv3_plugin.checkpoint.formats.model_file import model_of_checkpoint
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.training.resume import refuse_another_model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rotary_base": 20000.0}, "rotary_base is 20000.0, and was 10000.0 in iter_0000012"),
        ({"moe_router_topk": 1}, "moe_router_topk is 1, and was 2 in iter_0000012"),
        ({"layernorm_epsilon": 1e-5}, "layernorm_epsilon is 1e-05, and was 1e-06 in iter_0000012"),
    ],
)
def test_anothers_description_is_refused(trained, tmp_path, change, said):
    folder = tmp_path / "checkpoints"
    shutil.copytree(trained.checkpoints, folder)
    iteration = folder / "iter_0000012"
    own = model_of_checkpoint(folder, iteration, read_contents(iteration))
    assert own == ModelConfig.read(folder / "model.yaml")
    recipe = load_recipe(trained.recipe, [f"directory={tmp_path}"])
    refuse_another_model(recipe)

    other = own.model_copy(update=change)
    (folder / "model.yaml").write_text(other.to_yaml())
    with pytest.raises(UserError) as refused:
        model_of_checkpoint(folder, iteration, read_contents(iteration))
    assert said in str(refused.value)
    assert any(said in damage for damage in inspect(folder).damaged)
    for described in (True, False):
        with pytest.raises(UserError) as refused:
            refuse_another_model(recipe.model_copy(update={"model": other}))
        assert said in str(refused.value), described
        (folder / "model.yaml").unlink(missing_ok=True)
