"""Losses of runs: what is kept of their metrics, compared, and drawn."""

import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.report.loss_characters import drawn
from dsv3_plugin.report.loss_picture import draw_losses
from dsv3_plugin.report.losses import losses_of, means, names_apart

STEPS = 40


def write_run(folder, slope=10.0, recipe="pretrain/tiny", **more):
    """A run whose loss falls from 10 towards 2."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(load_recipe(recipe, [f"directory={folder}"]).to_yaml())
    run = RunFolder(folder)
    run.metrics.append({"iteration": 0, "tokens": 0, "validation_loss": 10.5})
    for step in range(1, STEPS + 1):
        loss = 2 + 8 * math.exp(-step / slope)
        run.metrics.append(
            {"iteration": step, "tokens": step * 1000, "loss": loss, "mtp_loss": loss + 1,
             "learning_rate": 1e-3, "batch_size": 8, "router_bias_speed": 0, "mtp_weight": 0.3,
             "tokens_per_second": 100.0 + step, **more}
        )  # fmt: skip
    run.metrics.append({"iteration": STEPS, "tokens": STEPS * 1000, "validation_loss": 2.5})
    return run


@pytest.fixture
def two(tmp_path):
    return [write_run(tmp_path / "runs" / name, slope) for name, slope in (("a", 10), ("b", 20))]


def test_what_is_kept_is_what_the_metrics_say(two):
    found = losses_of(two[0], "a")
    assert (found.steps[-1], found.tokens[-1]) == (STEPS, STEPS * 1000)
    assert found.held_out == [(0, 10.5), (STEPS * 1000, 2.5)]
    assert found.speed == np.median([100 + step for step in range(1, STEPS + 1)])
    assert found.loss_at(2999) == found.loss[1] == 2 + 8 * math.exp(-0.2)
    assert found.loss_at(10) is None
    assert set(found.used["mtp_weight"]) == {0.3}


def test_a_run_without_a_step_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="has no loss"):
        losses_of(RunFolder(tmp_path), "a")


def test_means_are_of_the_neighbours_that_are_numbers():
    values = [1.0, 2.0, math.nan, 4.0, 9.0]
    assert means(values, 3) == [1.5, 1.5, 3.0, 6.5, 6.5]
    assert math.isnan(means([math.nan], 3)[0])
    random = np.random.default_rng(0).random(100)
    ones = np.ones(15)
    expected = np.convolve(random, ones, "same") / np.convolve(np.ones(100), ones, "same")
    np.testing.assert_allclose(means(random, 15), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["x/runs/a", "y/runs/a"], ["x/runs/a", "y/runs/a"]),
        (["a/1", "b/1"], ["a/1", "b/1"]),
        (["a", "a"], ["a", "a"]),
    ],
)
def test_names_tell_runs_apart(paths, names):
    assert names_apart(paths) == names


@pytest.mark.parametrize("of", [1, 2])
def test_runs_are_drawn(two, tmp_path, of):
    runs = [losses_of(run, "$a_{b$") for run in two[:of]]
    draw_losses(runs, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="cannot write"):
        draw_losses(runs, tmp_path / "nowhere" / "losses.png")


def test_a_terminal_shows_where_losses_are(two, monkeypatch):
    """The rows of the letters are where the losses are between the ends of the axis."""
    runs = [losses_of(run, name) for run, name in zip(two, "ab", strict=True)]
    lines = drawn(runs, 80, colours=False)
    assert max(map(len, lines)) <= 80
    rows = [line.partition("|") for line in lines if line.partition("|")[0].strip()[:1].isdigit()]
    axis = [float(label) for label, _, _ in rows]
    for letter, run in zip("ab", runs, strict=True):
        first = min(
            (canvas.index(letter), value)
            for value, (_, _, canvas) in zip(axis, rows, strict=True)
            if letter in canvas
        )
        assert first[1] == pytest.approx(means(run.loss)[0], abs=axis[0] - axis[1])
    assert "\x1b" not in "".join(lines)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if this were a terminal
    assert "\x1b" in "".join(drawn(runs, 80, colours=True))


def test_losses_that_are_none_are_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    for number, loss in enumerate((math.nan, math.inf)):
        record = {"iteration": STEPS + number, "tokens": 10**6 + number, "loss": loss}
        with run.metrics.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    assert drawn([losses_of(run, "run")], 60, colours=False)
    draw_losses([losses_of(run, "run")], tmp_path / "losses.png")


@pytest.fixture
def figures(monkeypatch):
    """What is drawn, in place of pictures, which take long."""
    drawn = []

    def keep(figure, path, **_):
        drawn.append(figure)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def test_the_picture_of_several_runs_has_a_line_and_dots_of_each(two, tmp_path, figures):
    found = [losses_of(run, name) for run, name in zip(two, "ab", strict=True)]
    draw_losses(found, tmp_path / "both.png")
    losses, *curves = figures[0].axes
    for run, (raw, mean, dots) in zip(found, itertools.batched(losses.lines, 3), strict=True):
        assert raw.get_xydata().tolist() == [
            [*pair] for pair in zip(run.tokens, run.loss, strict=True)
        ]
        assert mean.get_ydata().tolist() == means(run.loss)
        assert mean.get_label() == run.name
        assert (dots.get_marker(), dots.get_linestyle()) == ("o", "None")
        assert dots.get_xydata().tolist() == [[0, 10.5], [STEPS * 1000, 2.5]]
        assert len({raw.get_color(), mean.get_color(), dots.get_color()}) == 1
    assert losses.lines[0].get_color() != losses.lines[3].get_color()
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["a", "b"]
    # Below, each run's curve and what was computed with.
    assert [len(axis.lines) for axis in curves] == [4, 4, 4, 4]


def test_the_picture_of_one_run_has_its_held_out_losses(two, tmp_path, figures):
    draw_losses([losses_of(two[0], "a")], tmp_path / "one.png")
    (losses, *_) = figures[0].axes
    lines = {line.get_label(): line for line in losses.lines}
    assert lines["held out"].get_xydata().tolist() == [[0, 10.5], [STEPS * 1000, 2.5]]
    assert {"next token", "two tokens ahead (MTP)"} < lines.keys()
    assert [text.get_text() for text in losses.texts] in (["10.50", "2.50"], ["2.50", "10.50"])
