"""A checkpoint from a stranger: wherever a pickle lies in it, no verb does what it says.

One trained checkpoint, and a payload in each place that anybody unpickles. If it ran, it would
make a file.
"""

import io
import json
import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.checkpoint.patches import PATCHES
from dsv3_plugin.checkpoint.restricted import restricted_reading
from dsv3_plugin.errors import UserError
from dsv3_plugin.upstream import patching
from tests.small_runs import Command

PLACES = ("metadata", "common", "rng", "extra", "tensor", "common.pt")
RUN = "posix.system"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self._mark}",)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def hostile(trained, tmp_path_factory):
    """A function that makes a checkpoint folder with a payload in one place, once."""
    made: dict[str, Path] = {}

    def make(place: str) -> Path:
        if place not in made:
            made[place] = folder = tmp_path_factory.mktemp("hostile") / "checkpoints"
            newest = tracker.find(trained.checkpoints)
            shutil.copytree(
                trained.checkpoints,
                folder,
                ignore=lambda _, names: [n for n in names if n[:5] == "iter_" and n != newest.name],
            )
            poison(folder / newest.name, place, Payload(folder.parent / "ran"))
        return made[place]

    return make


def poison(iteration: Path, place: str, payload: Payload) -> None:
    """Put a payload into one place of an iteration's folder."""
    path = iteration / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    if place == "metadata":
        metadata.planner_data = payload
    elif place == "common.pt":
        (iteration / "common.pt").write_bytes(saved({"args": None, "payload": payload}))
    else:
        begins = {"common": "common_state", "rng": "rng_state", "tensor": "embedding.word"}
        for index, info in metadata.storage_data.items():
            chosen = "_extra_state" in index.fqn if place == "extra" else (
                index.fqn.startswith(begins[place])
            )  # fmt: skip
            if chosen:
                data = saved([{"args": None, "deep": [payload]}])
                with (iteration / info.relative_path).open("ab") as file:
                    info.offset, info.length = file.tell(), len(data)
                    file.write(data)
    path.write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("place", PLACES)
def test_every_verb_names_it_and_runs_nothing(hostile, trained, place, dsv3, tmp_path):
    folder = hostile(place)
    np.save(tmp_path / "tokens.npy", np.arange(8)[None])
    given = ("--checkpoint", folder)
    for words in (
        ("inspect", folder),
        ("verify", folder, trained.checkpoints),
        ("export", folder, tmp_path / "out"),
        ("logits", *given, "--tokens", tmp_path / "tokens.npy", "--out", tmp_path / "l.npy"),
        ("generate", *given, "--prompt", "import"),
    ):
        said = dsv3(*words)
        assert (said.code, RUN in said.err, len(said.err.splitlines())) == (2, True, 1), said
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("place", ["metadata", "common", "rng", "extra", "common.pt"])
def test_a_run_does_not_go_on_from_an_older_one_in_silence(hostile, place):
    with pytest.raises(UserError, match=RUN):
        tracker.newest_complete(hostile(place))


@pytest.mark.parametrize("place", ["tensor", "common"])
def test_a_run_that_goes_on_from_it_is_refused(hostile, trained, place, tmp_path):
    """`tensor` is met by the ranks alone, when upstream loads it."""
    folder = shutil.copytree(hostile(place), tmp_path / "run" / "checkpoints")
    ended = Command.forked(
        "train", trained.recipe, f"directory={tmp_path}/run", f"data.path={trained.data}",
        "training.steps=14",
    ).end()  # fmt: skip
    assert ended.code == 2, ended.output
    assert f"names {RUN}" in ended.output
    assert not (folder.parent / "ran").exists()
    assert not (hostile(place).parent / "ran").exists()


@pytest.mark.parametrize("place", ["metadata", "rng", "extra", "tensor"])
def test_torchs_own_loader_refuses_it_while_we_read(hostile, place):
    """Whatever was looked at before, and whatever format upstream takes the folder for."""
    patching.apply(PATCHES)
    iteration = tracker._tracked(hostile(place)).path
    metadata = pickle.loads(
        (tracker._tracked(hostile("tensor")).path / ".metadata").read_bytes()
    ).state_dict_metadata
    state = {
        key: torch.empty(stored.size) if hasattr(stored, "size") else None
        for key, stored in metadata.items()
    }
    with pytest.raises(UserError, match=RUN), restricted_reading():
        torch.distributed.checkpoint.load(state, checkpoint_id=iteration, no_dist=True)
    assert not (hostile(place).parent / "ran").exists()


def test_a_tracker_that_leads_elsewhere_is_none(hostile, tmp_path):
    folder = shutil.copytree(hostile("common.pt"), tmp_path / "c")
    (folder / tracker.TRACKER).write_text("../../elsewhere")
    assert tracker._tracked(folder) is None


@pytest.mark.parametrize(
    "file", ["../../../etc/passwd", "/etc/passwd", "..", "a\nall good", "", "x/y", None, 7]
)
def test_bytes_outside_of_the_folder_are_refused(trained, tmp_path, file, dsv3):
    iteration = tracker.find(trained.checkpoints)
    folder = shutil.copytree(iteration, tmp_path / "iter_0000012")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = file
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    said = dsv3("inspect", folder)
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "no name of a file in the checkpoint's folder" in said.err or "damaged" in said.err


@pytest.mark.parametrize("numbers", ["size", "chunk", "both", "offset", "length", "negative"])
def test_sizes_that_lie_are_refused_before_there_is_room_made(trained, tmp_path, numbers, dsv3):
    iteration = tracker.find(trained.checkpoints)
    folder = shutil.copytree(iteration, tmp_path / "iter_0000012")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    key, stored = next(
        (key, stored)
        for key, stored in metadata.state_dict_metadata.items()
        if key == "embedding.word_embeddings.weight"
    )
    many = torch.Size([10**9, 10**6])
    if numbers in ("size", "both"):
        stored.size = many
    if numbers in ("chunk", "both"):
        stored.chunks[0].sizes = many
    for index, info in metadata.storage_data.items():
        if index.fqn == key and numbers in ("offset", "length"):
            setattr(info, numbers, 1 << 62)
        if index.fqn == key and numbers == "negative":
            info.offset = -1
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    (tmp_path / "model.yaml").write_text((trained.checkpoints / "model.yaml").read_text())
    for words in (("export", folder, tmp_path / "out"), ("verify", folder, iteration)):
        said = dsv3(*words)
        assert (said.code, len(said.err.splitlines())) == (2, 1), said


def renamed(metadata, name):
    metadata.state_dict_metadata[name] = metadata.state_dict_metadata.pop(WORDS)
    for index in [index for index in metadata.storage_data if index.fqn == WORDS]:
        metadata.storage_data[MetadataIndex(name, index.offset)] = metadata.storage_data.pop(index)


def without_chunks(metadata):
    metadata.state_dict_metadata[WORDS].chunks = []


def of_no_type(metadata):
    metadata.state_dict_metadata[WORDS].properties.dtype = "float32"


def nothing_at_all(metadata):
    vars(metadata).clear()


WORDS = "embedding.word_embeddings.weight"


@pytest.mark.parametrize(
    "change",
    [
        partial(renamed, name=7),
        partial(renamed, name=("a", "b")),
        without_chunks,
        of_no_type,
        nothing_at_all,
    ],
    ids=["number", "tuple", "nowhere", "no type", "empty"],
)
def test_metadata_that_makes_no_sense_is_damaged(trained, tmp_path, change, dsv3):
    folder = shutil.copytree(tracker.find(trained.checkpoints), tmp_path / "iter_0000012")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    said = dsv3("inspect", folder)
    assert (said.code, "is damaged" in said.err, len(said.err.splitlines())) == (2, True, 1), said


def test_a_checkpoint_of_our_own_is_read(trained, dsv3):
    said = dsv3("inspect", trained.checkpoints, "--json")
    assert said.code == 0
    assert json.loads(said.out)["complete"]
