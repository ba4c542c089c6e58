"""What a person sees: a bar on a terminal, plain lines in a log."""

import io

import pytest

from dsv3_plugin.launch.progress import Pace, ProgressDisplay, describe
from dsv3_plugin.terminal.console import Console

STEP = {
    "iteration": 10,
    "tokens": 20_480,
    "loss": 6.12345,
    "mtp_loss": 6.5,
    "learning_rate": 4e-3,
    "grad_norm": 0.5,
    "tokens_per_second": 2345.6,
    "time": 100.0,
}


def test_a_record_is_one_plain_line():
    assert describe(STEP) == (
        "step 10  20.48K tokens  loss 6.1235  mtp loss 6.5000  lr 0.004  grad norm 0.500  "
        "2,346 tokens/s"
    )


def test_a_held_out_set_is_shown_by_its_name_and_is_not_the_held_out_loss():
    of_set = {"iteration": 10, "tokens": 20_480, "held_out_set": "code", "validation_loss": 2.5}
    assert describe(of_set) == "step 10  20.48K tokens  held-out code loss 2.5000"
    text = shown(True, STEP, {**STEP, "validation_loss": 6.2}, of_set | {"time": 101.0})
    assert "held-out 6.200" in text
    assert "2.500" not in text


def test_further_multi_token_prediction_layers_are_shown_beside_the_first():
    further = {**STEP, "mtp_2_loss": 6.75, "mtp_2_acceptance_rate": 1.0}
    assert "  mtp loss 6.5000  mtp 2 loss 6.7500  lr 0.004" in describe(further)


def test_pace_is_judged_by_the_clock_and_saving_counts():
    pace = Pace(total_tokens=10_000)
    assert pace.seconds_left is None
    pace.note({"time": 0.0, "tokens": 4000})  # a resumed run does not begin at 0
    assert pace.seconds_left is None
    pace.note({"time": 10.0, "tokens": 5000})
    assert pace.seconds_left == pytest.approx(50)
    pace.note({"time": 30.0, "tokens": 6000})  # a checkpoint was saved meanwhile
    assert pace.seconds_left == pytest.approx(60)


def test_a_damaged_record_says_what_it_can_and_counts_for_no_pace():
    odd = {"iteration": 3, "tokens": None, "loss": "low", "grad_norm": 10**400, "time": "now"}
    assert describe(odd) == "step 3"
    pace = Pace(total_tokens=10_000)
    for record in ({"time": 0.0, "tokens": 4000}, odd, {"time": 1e999, "tokens": 1},
                   {"time": 10.0, "tokens": 5000}):  # fmt: skip
        pace.note(record)
    assert pace.seconds_left == pytest.approx(50)
    pace.note({"time": 20.0, "tokens": 3000})  # fewer than before: of another start
    assert pace.seconds_left is None
    for terminal in (True, False):
        assert "5.0000" in shown(terminal, odd, {**STEP, "validation_loss": 5.0}) or terminal


def shown(terminal: bool, *records: dict, notes: tuple[str, ...] = ()) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=140, height=20)
    with ProgressDisplay(40_960, interval=10, console=console) as display:
        for note in notes:
            display.note(note)
        display.show_all(records)
    return text.getvalue()


def test_a_log_has_every_tenth_step_and_every_evaluation():
    records = [{**STEP, "iteration": step, "time": float(step)} for step in range(8, 12)]
    records.append({"iteration": 11, "tokens": 1, "validation_loss": 6.25, "time": 12.0})
    lines = shown(False, *records, notes=("[a sentence]",)).splitlines()
    assert lines[0] == "[a sentence]"
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 10", "step 11"]
    assert lines[2] == "step 11  1 tokens  held-out loss 6.2500"


def test_a_terminal_has_tokens_losses_speed_and_time_left():
    later = {**STEP, "tokens": 30_720, "loss": 6.0, "time": 110.0}
    text = shown(True, STEP, {**STEP, "validation_loss": 6.2}, later)
    assert "30.72K/40.96K tokens" in text
    assert "75%" in text
    assert "loss 6.000 · held-out 6.200 · 2,346 tok/s · 10s left" in text
