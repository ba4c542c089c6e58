"""Upstream's refusals with the flags that change what they are about."""

import pytest

from dsv3_plugin.rehearsal.refusal import flags_named, refusal


def test_a_refusal_names_the_keys_of_what_it_is_about() -> None:
    finding = refusal("these settings", "Use --cross-entropy-fusion-impl native, or nothing.")
    assert finding.text == (
        "Megatron refuses these settings: Use --cross-entropy-fusion-impl native, or nothing "
        "(`dsv3 args` shows what the recipe gives for --cross-entropy-fusion-impl, and "
        "megatron_args.cross-entropy-fusion-impl changes it)"
    )
    assert finding.stops
    assert finding.whole == ""


def test_one_that_names_none_says_where_flags_are_shown() -> None:
    assert "`dsv3 args` shows the flags" in refusal("these settings", "No.").way_out


def test_of_one_that_goes_on_for_pages_the_whole_is_kept() -> None:
    message = "sequence_parallel must be set. " + "Read this too. " * 30
    finding = refusal("the finished configuration", message)
    assert finding.sentence.endswith("configuration: sequence_parallel must be set")
    assert finding.whole == message


@pytest.mark.parametrize(
    ("message", "flags"),
    [
        ("delay_wgrad_compute with moe_shared_expert_overlap",
         ["delay-wgrad-compute", "moe-shared-expert-overlap"]),
        ("--no-such and some_such, num_layers", ["num-layers"]),
        ("of no flag", []),
    ],
)  # fmt: skip
def test_flags_are_known_by_either_name(message: str, flags: list[str]) -> None:
    assert flags_named(message) == flags
