"""DeepSeek-V3-style training on Megatron-Core: what upstream lacks, and nothing else.

For a program that drives Megatron-LM itself:

    import dsv3_plugin
    dsv3_plugin.register()        # the table of patches, dsv3_plugin/training/patches.py

Nothing heavy is imported until then.
"""

import sys
import warnings

if not sys.warnoptions:
    # Modules of Megatron say, as they are imported, what they do without. On a CPU that is our own
    # choice, and on GPUs `dsv3 doctor` tells it once. Whoever asks for warnings (-W) sees them.
    for _said in (
        r"(Transformer Engine and )?Apex (is|are) not installed",
        r"Only transformer-engine>=1\.7\.0 supports MoE experts",
    ):
        warnings.filterwarnings("ignore", _said, module=r"megatron\.")


def register() -> None:
    """Apply the plugin's patches to Megatron in this process. Twice is harmless.

    On a machine without a GPU call `dsv3_plugin.upstream.cpu_host.enable()` before.

    Raises:
        dsv3_plugin.errors.UserError: another megatron-core than the patches are written for.
    """
    from dsv3_plugin.training.patches import TABLE
    from dsv3_plugin.upstream import patching

    patching.apply(TABLE)


def unregister() -> None:
    """Put Megatron back as it was installed."""
    from dsv3_plugin.upstream import patching

    patching.unregister()
