"""What ranks import as a run goes on, imported at once by the server that forks them.

As a CPU host, which has to be enabled before megatron is imported.
"""

import argparse
import gc
from importlib import import_module
from typing import Any

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

OURS = (
    "dsv3_plugin.checkpoint.conversion.convert",
    "dsv3_plugin.cli.command",
    "dsv3_plugin.launch.rank",
    "dsv3_plugin.model.build",
    "dsv3_plugin.stages.pretrain",
    "dsv3_plugin.training.trainer",
    "dsv3_plugin.training.upstream_arguments",
)
THEIRS = (
    "megatron.core.dist_checkpointing.strategies.cached_metadata_filesystem_reader",
    "megatron.core.models.mimo",
    "megatron.core.tokenizers.text.models",
    "pytest",  # by files of tests that have functions for ranks
    "torch._dynamo",  # by any optimizer of torch
    "torch._subclasses.schema_check_mode",
    "torch.utils.serialization",
    "transformers.modeling_layers",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.deepseek_v3.modeling_deepseek_v3",
    "transformers.tokenization_python",
)
"""Imported inside functions."""

for name in (*OURS, *THEIRS):
    import_module(name)


def remember_docstrings() -> None:
    """Read once what the flags of upstream's dataclasses say of themselves.

    Upstream parses its own source for that whenever it makes a parser, which a rank does three
    times: a third of what a rank costs until its first step.
    """
    from megatron.training.argument_utils import ArgumentGroupFactory
    from megatron.training.arguments import add_megatron_arguments

    read, known = ArgumentGroupFactory._get_field_docstrings, {}

    def remembered(factory: Any, source: type) -> dict[str, str]:
        if source not in known:
            known[source] = read(factory, source)
        return dict(known[source])

    ArgumentGroupFactory._get_field_docstrings = remembered
    add_megatron_arguments(argparse.ArgumentParser())


remember_docstrings()

# No collection looks at them in every process again, and they stay shared memory.
gc.collect()
gc.freeze()
