"""What model/ replaces of upstream, and why: its rows of the table of patches."""

from dsv3_plugin.model import head, layers, loss, mtp_padding, mtp_tokens, next_tokens
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
        targets=(
            "megatron.core.transformer.multi_token_prediction:"
            "MultiTokenPredictionLayer._get_embeddings",
        ),
        replacement=mtp_padding.get_embeddings,
        reason="the last place of a padded sequence counts in the router of an MTP layer",
        test="tests/model/test_mtp_padding.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel:vocab_parallel_cross_entropy",),
        replacement=loss.vocab_parallel_cross_entropy,
        reason="on a CPU the vocabulary-parallel form costs several passes that one rank can spare",
        test="tests/model/test_small_layers.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.transformer.multi_token_prediction:roll_tensor",),
        replacement=next_tokens.roll_tensor,
        reason="MTP's labels cross samples of a pack; its loss is no mean over parts of a sequence",
        test="tests/model/test_next_tokens.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.transformer.multi_token_prediction:process_mtp_loss",
            "megatron.core.models.gpt.gpt_model:process_mtp_loss",
            "megatron.core.models.hybrid.hybrid_model:process_mtp_loss",
        ),
        replacement=mtp_tokens.process_mtp_loss,
        reason="of a sequence that ranks share, MTP's labels are weighed by each rank's own tokens",
        test="tests/model/test_latent_context.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel.layers:ColumnParallelLinear.__init__",),
        replacement=head.build_without_apex,
        reason="with Transformer Engine and without Apex, ranks with the output head do not start",
        test="tests/model/test_head.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel.layers:fused_weight_gradient_mlp_cuda",),
        replacement=head.WeightGradientKernels,
        reason="the head's weight gradient is added to its sum by a kernel of Apex alone",
        test="tests/model/test_head.py",
        fills_in=True,
    ),
)
