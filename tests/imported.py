"""What ranks import as a run goes on, imported at once by the server that forks them.

As a CPU host, which has to be enabled before megatron is imported.
"""

import gc
from importlib import import_module

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

OURS = (
    "dsv3_plugin.checkpoint.conversion.convert",
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
    "torch._dynamo",  # by any optimizer of torch
    "torch._subclasses.schema_check_mode",
    "torch.utils.serialization",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_python",
)
"""Imported inside functions."""

for name in (*OURS, *THEIRS):
    import_module(name)

# No collection looks at them in every process again, and they stay shared memory.
gc.collect()
gc.freeze()
