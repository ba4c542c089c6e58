"""Initial weights are a function of the seed and the model: of nothing else that a recipe says."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from dsv3_plugin.distributed.world import order_kernels, single_process
from dsv3_plugin.model.build import build_model
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training.initial_weights import ROWS, _drawn, draw_weights
from tests import oracles
from tests.gloo_ranks import run_ranks
from tests.small_runs import write_recipe
from tests.training import trainer_ranks
from tests.whole_tensors import Part, parts, whole

RUNS = {
    "memory": (
        1,
        [
            "training.micro_batch_size=4",
            "data.seq_length=32",
            "recompute=[norms, mla_up_proj, moe]",
        ],
    ),
    "expert parallel, ZeRO-1, BF16": (
        2,
        ["parallel.expert=2", "parallel.zero1=true", "precision.dtype=bf16"],
    ),
    "tensor parallel": (2, ["parallel.tensor=2"]),
    "interleaved": (
        2,
        [
            "parallel.pipeline=2",
            "pipeline.schedule=interleaved",
            "pipeline.virtual_stages=2",
            "pipeline.layout=E|tt|t|mL",
        ],
    ),
    "dualpipe_v": (
        2,
        ["pipeline.devices=2", "pipeline.schedule=dualpipe_v", "pipeline.layout=Et|t|t|mL"],
    ),
    "dualpipe": (
        2,
        ["pipeline.devices=2", "pipeline.schedule=dualpipe", "pipeline.layout=Ett|tmL"],
    ),
}


def first_weights(rank: int, recipe: Path, overrides: list[str]) -> list[Part]:
    """What a rank of the recipe's run holds before its first step."""
    from dsv3_plugin.stages import pretrain
    from dsv3_plugin.training.hooks import Hook

    order_kernels(load_recipe(recipe, overrides))  # as whoever starts ranks does
    held = []

    class Look(Hook):
        def before_step(self, step):
            held.extend(parts(step.model))
            raise SystemExit

    def stage(run):
        plain = pretrain.pretrain(run)
        return dataclasses.replace(plain, hooks=[Look()])

    trainer_ranks.train(rank, recipe, overrides, stage)
    return held


class Begun:
    """Runs of one small recipe, as they are before their first step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = write_recipe(folder)
        settings = yaml.safe_load(self.recipe.read_text())
        # A vocabulary that is padded: to 640 for one rank, to 768 for two of tensor parallelism.
        settings["model"] |= {"num_layers": 3, "moe_layer_freq": [0, 1, 1], "vocab_size": 520}
        settings["parallel"] = {"processes": 1}
        settings["data"] |= {"path": str(folder / "data"), "held_out": 0.0}
        settings["training"]["eval_interval"] = None
        self.recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.alone = self.weights("alone", 1, [])

    def weights(self, name: str, world: int, overrides: list[str]) -> dict[str, torch.Tensor]:
        """The weights a run begins with, put together of all its ranks."""
        scratch = self.folder / name
        scratch.mkdir()
        arguments = [f"directory={scratch}/run", f"parallel.processes={world}", *overrides]
        ranks = run_ranks(world, first_weights, self.recipe, arguments, scratch=scratch)
        return whole(part for held in ranks for part in held)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    return Begun(tmp_path_factory.mktemp("begun"))


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_one_model_begin_with_the_same_weights(begun, name):
    weights = begun.weights(name, *RUNS[name])
    assert weights.keys() == begun.alone.keys()
    for key, tensor in weights.items():
        expected = begun.alone[key].to(tensor.dtype)
        box = tuple(map(slice, expected.shape))  # a vocabulary may be padded further
        assert tensor.shape[1:] == expected.shape[1:], key
        assert torch.equal(tensor[box], expected), key


def built(seed: int, **changes) -> dict[str, torch.Tensor]:
    """The tensors of a small model, drawn anew."""
    model = build_model(oracles.model_config(mtp_num_layers=1, **changes))
    draw_weights([model], seed)
    return whole(parts([model]))


@pytest.fixture(scope="module")
def world():
    with single_process():
        yield


def test_every_matrix_is_drawn_and_no_two_are_alike(world):
    tensors = built(1)
    matrices = [
        matrix
        for tensor in tensors.values()
        if tensor.dim() > 1
        for matrix in tensor.view(-1, *tensor.shape[-2:])
    ]
    assert len(matrices) > 3 * 2 * 16  # those of the experts alone
    corners = {matrix[0, :3].numpy().tobytes() for matrix in matrices}
    assert len(corners) == len(matrices)
    everything = torch.cat([matrix.flatten() for matrix in matrices])
    assert everything.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(everything.mean().item()) < 2e-4
    vectors = {key: tensor for key, tensor in tensors.items() if tensor.dim() == 1}
    for key, vector in vectors.items():
        assert torch.equal(vector, torch.full_like(vector, 0.0 if "bias" in key else 1.0)), key


def test_another_seed_draws_other_weights(world):
    one, again, other = built(1), built(1), built(2)
    for key, tensor in one.items():
        assert torch.equal(again[key], tensor), key
        assert torch.equal(other[key], tensor) == (tensor.dim() == 1), key


def test_what_else_draws_numbers_changes_nothing(world):
    one = built(1)
    torch.rand(17)
    assert all(torch.equal(tensor, one[key]) for key, tensor in built(1).items())
    # Nor does drawing weights change what the process draws.
    torch.manual_seed(3)
    model = build_model(oracles.model_config())
    state = torch.get_rng_state()
    draw_weights([model], 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_are_to_be_loaded_are_not_drawn(world):
    model = build_model(oracles.model_config(), perform_initialization=False)
    for parameter in model.parameters():
        parameter.data.fill_(3.0)
    draw_weights([model], 1)
    assert all((parameter == 3).all() for parameter in model.parameters())


@pytest.mark.parametrize("first", [0, 1, ROWS - 1, ROWS, 2 * ROWS + 5])
@pytest.mark.parametrize("count", [1, ROWS, ROWS + 3])
def test_rows_are_those_of_the_whole(first, count):
    everything = torch.cat([*_drawn("a name", 0, 4 * ROWS, 7)])
    rows = torch.cat([*_drawn("a name", first, count, 7)])
    assert torch.equal(rows, everything[first : first + count])
