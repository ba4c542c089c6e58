"""What model/ replaces of upstream, and why: its rows of the table of patches."""

from dsv3_plugin.model import layers, loss
from dsv3_plugin.upstream.patching import Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        targets=("megatron.training.models.gpt:mtp_block_spec",),
        replacement=layers.choose_mtp_block_spec,
        reason="upstream's builder makes the MTP layers' spec itself and never asks --spec",
        test="tests/model/test_specs.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel:vocab_parallel_cross_entropy",),
        replacement=loss.vocab_parallel_cross_entropy,
        reason="on a CPU the vocabulary-parallel form costs several passes that one rank can spare",
        test="tests/model/test_small_layers.py",
        wraps=True,
    ),
)
