"""Whole folders and checkpoints, and copies of them to damage."""

import shutil

import pytest

from dsv3_plugin.checkpoint import import_hf
from tests.checkpoint.conversion.damage import MODEL
from tests.checkpoint.samples import random_tensors, write_folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A folder in BF16, the same model in FP8, and a checkpoint of the first."""
    root = tmp_path_factory.mktemp("sources")
    for form in ("bf16", "fp8"):
        write_folder(root / form, MODEL, random_tensors(MODEL, form))
    import_hf(root / "bf16", root / "checkpoint")
    return root


@pytest.fixture
def source(sources, tmp_path):
    """A copy of the BF16 folder to damage."""
    return shutil.copytree(sources / "bf16", tmp_path / "source")


@pytest.fixture
def fp8_source(sources, tmp_path):
    """A copy of the FP8 folder to damage."""
    return shutil.copytree(sources / "fp8", tmp_path / "source")


@pytest.fixture
def checkpoint(sources, tmp_path):
    """A copy of the checkpoint to damage."""
    return shutil.copytree(sources / "checkpoint", tmp_path / "checkpoint")
