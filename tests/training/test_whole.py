"""Documents that stay whole: padding changes no number, however ranks divide it; and going on.

Held to what one process computes. In the first step numbers differ by the order of FP32 additions
alone; a step of Adam lets that grow.
"""

import json

import pytest

from tests.gloo_ranks import run_ranks
from tests.small_runs import records
from tests.training import trainer_ranks

KEYS = ("loss", "mtp_loss", "balance_loss", "grad_norm", "validation_loss")
THE_SAME = [
    "data.packing=whole",
    "data.long_document_share=0.9",
    "model.num_layers=3",
    "model.moe_layer_freq=[0,1,1]",
    "model.moe_aux_loss_coeff=0.01",  # so much that a wrong weight of it shows in the norm
    "training.micro_batch_size=1",
    "training.steps=2",
    "training.eval_interval=2",
    "curves.batch_size=8",
    "checkpoint.interval=1",
]
V = ["parallel.pipeline=2", "pipeline.schedule=1f1b_v", "pipeline.layout=Et|t|t|mL"]


def paragraphs(folder):
    """Most of them more than half a sequence and less than one, so that each leaves some room."""
    for path in sorted(folder.rglob("*.py")):
        for text in path.read_text().split("\n\n"):
            if 100 <= len(text) <= 130 or len(text) <= 20:
                yield text


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A function that goes on with a run by name, and gives the numbers of its steps so far."""
    scratch = tmp_path_factory.mktemp("whole")
    corpus = scratch / "paragraphs.jsonl"
    with corpus.open("w") as file:
        for text in paragraphs(recipe.with_name("corpus")):
            file.write(json.dumps({"text": text}) + "\n")

    def go_on(name, world, *overrides):
        ranks = scratch / f"{name}{len(list(scratch.iterdir()))}"
        ranks.mkdir()
        given = [f"directory={scratch}/{name}", f"data.path={scratch}/alone/data"]
        given += [f"data.corpus={corpus}", f"parallel.processes={world}", "parallel.expert=1"]
        given += [*THE_SAME, *overrides]
        run_ranks(world, trainer_ranks.train, recipe, given, scratch=ranks, timeout_s=180)
        lines = records(scratch / name)
        loads = [line["expert_load"] for line in lines if "expert_load" in line]
        return {
            (line["iteration"], key): line[key] for line in lines for key in KEYS if key in line
        }, loads

    return go_on


@pytest.fixture(scope="module")
def alone(run):
    return run("alone", 1)


def check(found, alone):
    (numbers, loads), (expected, expected_loads) = found, alone
    first, later = (
        {at: value for at, value in expected.items() if (at[0] <= 1) == early}
        for early in (True, False)
    )
    assert numbers.keys() == expected.keys()
    assert {at: numbers[at] for at in first} == pytest.approx(first, rel=1e-6)
    assert {at: numbers[at] for at in later} == pytest.approx(later, rel=3e-5)
    assert loads == expected_loads


def test_tokens_on_two_ranks(run, alone):
    check(run("tokens", 2, "parallel.context=2", "parallel.expert=2"), alone)


def test_tokens_and_layers_in_a_v_stopped_and_gone_on_with(run, alone):
    run("v", 4, "parallel.context=2", *V, "megatron_args.exit-interval=1")
    check(run("v", 4, "parallel.context=2", *V), alone)


def test_heads_and_layers_by_upstreams_schedule(run, alone):
    layers = ["parallel.pipeline=2", "pipeline.schedule=1f1b", "pipeline.layout=Ett|tmL"]
    check(run("heads", 4, "parallel.tensor=2", *layers), alone)


def test_padding_is_counted_nowhere(alone):
    """The sequences of a step are not full, and no expert's load has what is left of them."""
    for load in alone[1]:
        for of_layer in load.values():
            assert 0 < sum(of_layer) < 8 * 64 * 2  # two experts a token
