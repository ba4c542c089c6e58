"""Logits and text of one GPU are those of the CPU."""

import numpy
import pytest

from tests.gpu.trained import dsv3

HIDE_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("mtp", [(), ("--mtp",)], ids=["main", "mtp"])
def test_logits_are_those_of_the_cpu(start, tmp_path, mtp):
    drawn = numpy.random.default_rng(0).integers(0, 512, (2, 48), dtype=numpy.int64)
    numpy.save(tmp_path / "tokens.npy", drawn)
    common = ("logits", "--checkpoint", start.release, "--tokens", tmp_path / "tokens.npy", *mtp)
    dsv3(*common, "--out", tmp_path / "gpu.npy")
    dsv3(*common, "--out", tmp_path / "cpu.npy", **HIDE_GPU)
    gpu, cpu = numpy.load(tmp_path / "gpu.npy"), numpy.load(tmp_path / "cpu.npy")
    assert gpu.shape == cpu.shape
    assert abs(gpu - cpu).max() <= 1e-4 * abs(cpu).max()


def test_the_likeliest_text_is_that_of_the_cpu(start):
    common = (
        *("generate", "--checkpoint", start.release),
        *("--prompt", "def read(self):", "--max-new-tokens", "12"),
    )
    assert dsv3(*common) == dsv3(*common, **HIDE_GPU)


def test_a_seed_draws_the_same_text_twice(start):
    common = (
        *("generate", "--checkpoint", start.release, "--prompt", "def read(self):"),
        *("--max-new-tokens", "12", "--temperature", "1", "--seed", "3"),
    )
    assert dsv3(*common) == dsv3(*common)
