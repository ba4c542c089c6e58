"""What is said of that which a run is evaluated on, once it is built."""

from types import SimpleNamespace

import numpy
import pytest

from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training import evaluation_notes as module
from dsv3_plugin.training.evaluation_notes import evaluation_note, evaluation_notes


def part(documents: int, tokens: int) -> SimpleNamespace:
    return SimpleNamespace(documents=documents, tokens=tokens)


def data(held_out: SimpleNamespace, **sets: SimpleNamespace) -> SimpleNamespace:
    """Data of one corpus, and held-out sets."""
    built = {
        name: SimpleNamespace(manifest=SimpleNamespace(train=one), train_prefix=name)
        for name, one in sets.items()
    }
    corpus = SimpleNamespace(manifest=SimpleNamespace(held_out=held_out))
    return SimpleNamespace(datasets=[corpus], valid_prefixes=["held_out"], held_out_sets=built)


def said(recipe, built) -> list[str]:
    return [note for note in evaluation_notes(recipe, built) if note is not None]


@pytest.mark.parametrize(
    ("override", "tokens", "note"),
    [
        # 0, 4, 8 and 12: two batches of eight each.
        ("training.eval_interval=4", 64 * 64 + 1, None),
        (
            "training.eval_interval=4",
            64 * 64,
            "The held-out part has 63 sequences and 4 evaluations read 64: it is repeated.",
        ),
        # 0, 5, 10 and the end.
        ("training.eval_interval=5", 64 * 64 + 1, None),
        (
            "training.eval_interval=500",
            65,
            "The held-out part has 1 sequence and 2 evaluations read 32: it is repeated.",
        ),
        ("training.eval_interval=null", 65, None),
    ],
)
def test_a_held_out_part_that_is_read_more_than_once_is_said(recipe, override, tokens, note):
    assert evaluation_note(load_recipe(recipe, [override]), tokens) == note


def test_a_single_document_is_said_of_the_part_and_of_each_set(recipe):
    loaded = load_recipe(recipe)
    enough = 10**6
    assert said(loaded, data(part(1, enough), one=part(1, enough), more=part(2, enough))) == [
        "The held-out part is a single document: what is evaluated says how that one is predicted.",
        "The held-out set one is a single document: what is evaluated says how that one is "
        "predicted.",
    ]
    never = load_recipe(recipe, ["training.eval_interval=null"])
    assert said(never, data(part(1, enough))) == []


def test_of_packed_conversations_the_sequences_are_counted(monkeypatch):
    """Two of 600 tokens do not share a sequence of 1,024, and eight of 100 do."""
    loaded = load_recipe("sft/tiny", ["data.seq_length=1024", "training.eval_steps=1"])
    lengths = {"held_out": [600, 600, 600], "small": [100] * 8}
    monkeypatch.setattr(
        module, "map_sequences", lambda name: SimpleNamespace(lengths=numpy.array(lengths[name]))
    )
    batch = loaded.batch_schedule.batch(0)
    evaluations = 1 + -(-loaded.total_steps // loaded.training.eval_interval)
    there = f"and {evaluations} evaluations read {evaluations * batch}: it is repeated."
    assert said(loaded, data(part(3, 1800), small=part(8, 800))) == [
        f"The held-out part has 3 sequences {there}",
        f"The held-out set small has 1 sequence {there}",
    ]
