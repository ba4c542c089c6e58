"""Which of upstream's numbers a line of metrics.jsonl has, and what it calls them."""

from typing import Any

import pytest

from dsv3_plugin.training.metrics import MetricsWriter, of_one_set, recorded_name


class TensorBoard:
    def __init__(self) -> None:
        self.given: list[Any] = []

    def add_scalar(self, *scalar: Any) -> None:
        self.given.append(scalar)


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("lm loss", "loss"),
        ("mtp_1 loss", "mtp_loss"),
        ("mtp_2 loss", "mtp_2_loss"),
        ("mtp_1_acceptance_rate", "mtp_acceptance_rate"),
        ("mtp_2_acceptance_rate", "mtp_2_acceptance_rate"),
        ("lm loss validation", "validation_loss"),
        ("draft acceptance validation", "validation_draft_acceptance"),
        ("lm loss validation ppl", "lm_loss_validation_ppl"),
        ("params-norm", "params_norm"),
        ("num-zeros", "num_zeros"),
        ("moe/seq_load_balancing_loss_layer_3", "moe_seq_load_balancing_loss_layer_3"),
        ("iter-energy/gpu", "iter_energy_gpu"),
        ("a number nobody has thought of", "a_number_nobody_has_thought_of"),
        ("params-norm vs samples", None),
        ("mtp_1_cumulative_acceptance_rate", None),
    ],
)
def test_every_number_has_a_name(tag: str, name: str | None) -> None:
    assert recorded_name(tag) == name


def test_what_is_found_on_a_held_out_set_is_called_as_elsewhere() -> None:
    tags = ("lm loss", "draft acceptance")
    numbers = {
        recorded_name(f"{tag} validation-my code{behind}"): 2.0
        for tag in tags
        for behind in ("", " ppl")
    }
    assert of_one_set(numbers, "my code") == dict.fromkeys(
        (
            "validation_loss",
            "lm_loss_validation_ppl",
            "validation_draft_acceptance",
            "draft_acceptance_validation_ppl",
        ),
        2.0,
    )


def test_a_line_has_what_upstream_told_and_tensorboard_has_all_of_it() -> None:
    writer = MetricsWriter(tensorboard := TensorBoard())
    for tag in ("mtp_2 loss", "mtp_2 loss vs samples"):
        writer.add_scalar(tag, 2.5, 7)
    writer.pass_on("max_vio/mean", 0.5, 7)
    assert writer.take() == {"mtp_2_loss": 2.5}
    assert writer.take() == {}
    assert [tag for tag, _, _ in tensorboard.given] == [
        "mtp_2 loss", "mtp_2 loss vs samples", "max_vio/mean",
    ]  # fmt: skip
