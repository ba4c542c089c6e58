"""What a run leaves behind, and what it says."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.supervise import train
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training.metrics import recorded_name
from tests.small_runs import STEPS, records


def test_it_says_what_will_happen_and_goes_through(trained):
    assert trained.ended.code == 0, trained.ended.output
    lines = trained.ended.output.splitlines()
    assert "307.0K with multi-token prediction" in lines[1]
    assert any(line.startswith("ranks   2 (data 2, expert 2)") for line in lines)
    assert any("linear 0 → 0.004" in line for line in lines)
    assert lines[-1].startswith(f"Done: step {STEPS}")
    # Upstream's chatter is in the logs, not here.
    assert "warn" not in trained.ended.output.lower()
    assert "lm loss" in (trained.folder / "logs" / "rank1.log").read_text()


def test_a_start_adds_few_lines_to_a_log(trained):
    """Upstream prints its 800 arguments each time, which are kept once."""
    logs = trained.folder / "logs"
    assert len((logs / "rank0.log").read_text().splitlines()) < 200
    lines = (logs / "arguments.txt").read_text().splitlines()
    kept = {line.split()[0]: line.split()[-1] for line in lines if " .." in line}
    assert kept["num_experts"] == "8"
    assert len(kept) > 500


def test_a_log_has_a_plain_line_every_few_steps_and_every_evaluation(trained):
    steps = [line for line in trained.ended.output.splitlines() if line.startswith("step ")]
    losses = [line for line in steps if "  loss " in line]
    assert len(losses) == STEPS // 2
    assert all("tokens/s" in line and "lr" in line for line in losses)
    assert len([line for line in steps if "held-out loss" in line]) == 3


def test_every_step_has_a_line_with_all_its_numbers(trained):
    lines = records(trained.folder)
    steps = [line for line in lines if "loss" in line]
    assert [line["iteration"] for line in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["tokens"] == load_recipe(trained.recipe).total_tokens
    for line in steps:
        assert line.keys() >= {
            "tokens", "loss", "mtp_loss", "balance_loss", "learning_rate", "grad_norm",
            "batch_size", "router_bias_speed", "mtp_weight", "step_seconds", "tokens_per_second",
        }  # fmt: skip
        assert 3 < line["mtp_loss"] < 7


def test_held_out_loss_is_known_before_the_first_step_and_falls(trained):
    held_out = {
        line["iteration"]: line["validation_loss"]
        for line in records(trained.folder)
        if "validation_loss" in line
    }
    assert list(held_out) == [0, 6, 12]
    assert held_out[0] == pytest.approx(6.24, abs=0.05)  # ln 512: nothing is known yet
    assert held_out[12] < held_out[6] < held_out[0]


def test_tensorboard_has_the_same_losses(trained):
    events = EventAccumulator(str(trained.folder / "tensorboard"))
    events.Reload()
    seen = {event.step: event.value for event in events.Scalars("lm loss")}
    told = {line["iteration"]: line["loss"] for line in records(trained.folder) if "loss" in line}
    assert seen == pytest.approx(told, rel=1e-6)


def test_metrics_have_every_number_that_upstream_logs(trained):
    """But for the few that are no news of the step: the names are compared, and the values."""
    events = EventAccumulator(str(trained.folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("dispatch/", "max_vio"))]
    left_out = {tag for tag in tags if recorded_name(tag) is None}
    assert {tag for tag in left_out if not tag.endswith(" vs samples")} == {
        "mtp_1_cumulative_acceptance_rate"
    }
    lines = records(trained.folder)
    # Its name is part of the other's, so upstream logs it too, as 0.
    assert not any(event.value for event in events.Scalars("load_balancing_loss"))
    for tag in set(tags) - left_out - {"load_balancing_loss"}:
        name = recorded_name(tag)
        logged = {event.step: event.value for event in events.Scalars(tag)}
        told = {line["iteration"]: line[name] for line in lines if name in line}
        assert told.keys() == logged.keys(), name
        if name != "learning_rate":  # upstream logs the one of the step to come
            assert told == pytest.approx(logged, rel=1e-6), name


def test_the_newest_checkpoints_are_kept_with_model_tokenizer_and_recipe(trained):
    found = sorted(path.name for path in trained.checkpoints.iterdir())
    assert found == [
        ".lock", "iter_0000004", "iter_0000008", "iter_0000012",
        "latest_checkpointed_iteration.txt", "model.yaml", "recipe.yaml", "tokenizer",
        "trained_on.json",
    ]  # fmt: skip
    assert load_recipe(trained.folder / "recipe.yaml") == load_recipe(
        trained.recipe, [f"directory={trained.folder}"]
    )


def test_a_finished_run_has_nothing_to_do(trained, capsys):
    before = (trained.folder / "metrics.jsonl").read_bytes()
    assert train(str(trained.recipe), [f"directory={trained.folder}"]) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert (trained.folder / "metrics.jsonl").read_bytes() == before


def test_a_second_run_in_the_same_folder_is_refused(trained):
    recipe = load_recipe(trained.recipe, [f"directory={trained.folder}"])
    with (
        recipe.run_folder.held(),
        pytest.raises(UserError, match="another run is using"),
    ):
        train(str(trained.recipe), [f"directory={trained.folder}"])


def test_a_second_run_with_the_same_checkpoints_is_refused(trained, tmp_path):
    """It would retire the first one's checkpoints."""
    recipe = load_recipe(trained.recipe, [f"directory={trained.folder}"])
    other = [f"directory={tmp_path}/other", f"checkpoint.directory={trained.checkpoints}"]
    with (
        recipe.run_folder.held(),
        pytest.raises(UserError) as refusal,
    ):
        train(str(trained.recipe), other)
    assert str(refusal.value) == (
        f"another run is using {trained.checkpoints}: wait for it, or choose another folder with "
        "checkpoint.directory=PATH."
    )
    assert not (tmp_path / "other").exists()


def test_the_folder_of_another_model_is_refused_and_left_alone(trained):
    before = (trained.folder / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=r"another model .kv_lora_rank is 32, the recipe says 16"):
        train(str(trained.recipe), [f"directory={trained.folder}", "model.kv_lora_rank=16"])
    assert (trained.folder / "recipe.yaml").read_bytes() == before
