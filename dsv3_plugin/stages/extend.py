"""Context extension: a pretrained model learns longer sequences.

Batches and loss are those of pretraining, on sequences that are as long as the new context and
made of whole documents where the recipe packs so. What makes the context longer is the recipe's
model: positions stretched by YaRN on the decoupled rotary key (arXiv 2412.19437, section 4.3;
arXiv 2309.00071), over the weights that `from:` names. The report goes from 4K to 32K and from
there to 128K, with one YaRN for both: so the second phase begins where the first ended.
"""

from dsv3_plugin.stages.pretrain import pretrain
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.stage import Stage


def extend(run: Run) -> Stage:
    """Context extension, for one run."""
    return pretrain(run)
