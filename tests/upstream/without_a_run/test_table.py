"""Every row of the table has its test here, and can be called as what it replaces."""

import inspect
from typing import Any
from unittest import mock

import pytest
import torch

import dsv3_plugin
from dsv3_plugin.training.patches import TABLE
from dsv3_plugin.upstream.patching import Patch
from dsv3_plugin.upstream.replace import lookup
from tests.upstream.without_a_run.covering import covered, of

HERE = [patch for patch in TABLE if not (patch.fills_in or patch.of_te)]
"""Rows that replace what upstream brings; the others' own tests say what they do."""


def test_every_row_has_its_test_here():
    assert sorted(covered()) == sorted(patch.targets[0] for patch in HERE)


def calls(signature: inspect.Signature) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Ways to call a function: all by position, all by name, and with what is required alone."""
    kinds = inspect.Parameter
    named = [p for p in signature.parameters.values() if p.kind == kinds.POSITIONAL_OR_KEYWORD]
    only = {p.name: 0 for p in signature.parameters.values() if p.kind == kinds.KEYWORD_ONLY}
    required = [p for p in named if p.default is kinds.empty]
    return [
        (tuple(0 for _ in named), only),
        ((), {p.name: 0 for p in named} | only),
        ((), {p.name: 0 for p in required} | only),
        (tuple(0 for _ in required), only),
    ]


@pytest.mark.parametrize("patch", HERE, ids=lambda patch: patch.name)
def test_a_replacement_can_be_called_as_the_original(patch: Patch):
    original = lookup(patch.targets[0])
    dsv3_plugin.register()
    replaced = lookup(patch.targets[0])
    assert replaced.__name__ == original.__name__ or inspect.isclass(replaced)
    if inspect.isclass(original) and issubclass(original, torch.autograd.Function):
        # `apply` takes no names.
        counts = [len(inspect.signature(c.forward).parameters) for c in (replaced, original)]
        assert counts[0] == counts[1]
        return
    signature = inspect.signature(original)
    assert inspect.signature(replaced) == signature
    for positional, named in calls(signature):  # and what is called in truth takes them too
        inspect.signature(replaced, follow_wrapped=False).bind(*positional, **named)


@of(
    "megatron.training.training:train",
    "megatron.training.training:update_num_microbatches",
    "megatron.training.training:finalize_model_grads",
    "megatron.training.training:training_log",
    "megatron.training.training:evaluate_and_print_results",
    "megatron.training.training:save_checkpoint",
    "megatron.training.training:maybe_finalize_async_save",
    "megatron.training.checkpointing:generate_state_dict",
    "megatron.training.checkpointing:_load_base_checkpoint",
    "megatron.training.training:load_checkpoint",
    "megatron.training.initialize:initialize_megatron",
)
@pytest.mark.parametrize(
    "patch",
    [p for p in TABLE if p.replacement.__module__.endswith(("around_upstream", "cpu_host"))],
    ids=lambda patch: patch.name,
)
def test_upstreams_training_is_handed_what_its_caller_gives(patch: Patch):
    original = lookup(patch.targets[0])
    for positional, named in calls(inspect.signature(original)):
        stand_in = mock.create_autospec(original, return_value="its answer")
        assert patch.replacement(stand_in)(*positional, **named) == "its answer"
        (call,) = stand_in.call_args_list
        given, expected = (
            inspect.signature(original).bind(*args, **kwargs)
            for args, kwargs in ((call.args, call.kwargs), (positional, named))
        )
        for bound in (given, expected):
            bound.apply_defaults()
            bound.arguments.pop("allow_no_cuda", None)  # said for everybody on a CPU host
        assert given.arguments == expected.arguments
