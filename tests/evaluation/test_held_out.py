"""Held-out tokens: documents end to end, sequences spread over them, and what is refused."""

import itertools
import shutil

import numpy
import pytest

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.data.dataset_folder import open_dataset
from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.checkpoint import Place
from dsv3_plugin.evaluation.held_out import TokenSet, held_out_of, held_out_sets
from dsv3_plugin.files.run_folder import RunFolder


@pytest.fixture
def held_out(trained):
    (one,) = held_out_sets(Place.named(trained.folder), None)
    return one


def test_a_runs_own_is_all_that_it_held_out(trained, held_out):
    part = open_dataset(trained.data).manifest.held_out
    assert len(held_out) == part.tokens
    stored = numpy.fromfile(trained.data / "held_out.bin", numpy.uint16)
    for first, count in ((0, len(held_out)), (17, 3000), (len(held_out) - 1, 1)):
        assert (held_out.sequence(first, count) == stored[first : first + count]).all()


@pytest.mark.parametrize("most", [1, 3, 7, 10**6])
def test_sequences_lie_side_by_side_and_far_apart(held_out, most):
    there = (len(held_out) - 1) // 64
    starts = held_out.sequences(64, most)
    assert len(starts) == min(most, there)
    assert starts[0] == 0
    assert starts[-1] + 64 < len(held_out)
    gaps = {after - before for before, after in itertools.pairwise(starts)}
    assert len(gaps) <= 2
    assert min(gaps, default=64) >= 64


def test_a_set_without_a_sequence_is_refused_with_what_there_is(held_out):
    held_out.sequences(len(held_out) - 1, 1)
    with pytest.raises(UserError, match=f"has {len(held_out):,} tokens, less than one sequence"):
        held_out.sequences(len(held_out), 1)


def test_a_dataset_is_its_held_out_part_and_a_prefix_is_itself(trained):
    place = Place.named(trained.folder)
    (folder,) = held_out_sets(place, str(trained.data))
    assert folder.prefix == trained.data / "held_out"
    for name in ("train", "train.bin", "train.idx"):
        (named,) = held_out_sets(place, str(trained.data / name))
        assert named.prefix == trained.data / "train"
    with pytest.raises(UserError, match=r"is no dataset: name a folder"):
        held_out_sets(place, str(trained.data / "nothing"))


def test_an_index_that_lies_is_refused(trained, tmp_path):
    for suffix in ("bin", "idx"):
        data = bytearray((trained.data / f"held_out.{suffix}").read_bytes())
        if suffix == "idx":
            data[34:38] = (2**30).to_bytes(4, "little")
        (tmp_path / f"x.{suffix}").write_bytes(data)
    with pytest.raises(UserError, match="does not describe"):
        len(TokenSet("it", tmp_path / "x"))


def test_checkpoints_outside_of_a_run_need_a_name(trained, tmp_path):
    elsewhere = tmp_path / "checkpoints"
    elsewhere.symlink_to(tracker.find(trained.checkpoints).parent)
    with pytest.raises(UserError, match="lies in no run's folder"):
        held_out_sets(Place.named(elsewhere), None)


def test_a_runs_named_sets_are_read_beside_its_parts(trained, tmp_path):
    """As `data.held_out_sets` leaves them; a mixture has a part of each member."""
    run = RunFolder(tmp_path)
    run.write_recipe("data: {held_out_sets: {code: texts, prose: texts}}")
    for place in ("data/member0", "data/member1", "data/held_out_sets/code"):
        shutil.copytree(trained.data, tmp_path / place)
    found = [one.tokens for one in held_out_of(run)]
    assert [one.name for one in found] == [
        f"the held-out part of {tmp_path}/data/member0",
        f"the held-out part of {tmp_path}/data/member1",
        "code",
    ]
    manifest = open_dataset(trained.data).manifest
    sizes = [manifest.held_out.tokens] * 2 + [manifest.train.tokens]
    assert [len(one) for one in found] == sizes
