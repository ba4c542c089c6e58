"""The spec that an unmodified Megatron-LM command line names.

    --spec dsv3_plugin.model.specs deepseek_v3_spec

with `--transformer-impl local` (torch alone) or `transformer_engine`.
"""

from typing import Any

from dsv3_plugin.dispatch import patches as of_dispatch
from dsv3_plugin.model import patches as of_model
from dsv3_plugin.model.config import mend_config
from dsv3_plugin.model.layers import DeepSeekLayers, stage_layers, transformer_of
from dsv3_plugin.upstream import patches as of_upstream
from dsv3_plugin.upstream import patching


def deepseek_v3_spec(config: Any, vp_stage: int | None = None) -> DeepSeekLayers:
    """The layers of this rank's pipeline stage.

    Called by upstream's own builder, it also applies the patches that the model stands on: without
    them the multi-token prediction layers would silently be upstream's, with another router.

    Args:
        config: upstream's GPTModelConfig, as `--spec` functions get it, or an
            MLATransformerConfig. Its traps are mended in place (see `mend_config`).
        vp_stage: virtual pipeline stage, where there are several.
    """
    transformer = transformer_of(config)
    if transformer is not config:
        patching.apply((*of_upstream.PATCHES, *of_dispatch.PATCHES, *of_model.PATCHES))
    mend_config(transformer)
    return stage_layers(transformer, vp_stage)
