"""What the stages of a pipeline hold, and which of them a rank holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from dsv3_plugin.planner.counts import Kind
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.stage_layout import expand


@dataclass(frozen=True)
class Stage:
    """The parts of a model on one stage.

    Attributes:
        embedding: whether it begins with the embedding.
        dense: its dense decoder layers.
        moe: its mixture-of-experts decoder layers.
        mtp: its layers of multi-token prediction.
        head: whether it ends with the final norm, the output head and the loss.
    """

    embedding: bool = False
    dense: int = 0
    moe: int = 0
    mtp: int = 0
    head: bool = False

    @property
    def kinds(self) -> dict[Kind, int]:
        """How many it holds of each kind; nothing for what it does not hold."""
        held: dict[Kind, int] = {
            "embedding": int(self.embedding),
            "dense": self.dense,
            "moe": self.moe,
            "mtp": self.mtp,
            "head": int(self.head),
        }
        return {kind: number for kind, number in held.items() if number}

    @property
    def decoder_layers(self) -> int:
        return self.dense + self.moe

    @property
    def layers(self) -> int:
        """Transformer layers, those of multi-token prediction included."""
        return self.decoder_layers + self.mtp


def stages_of(model: ModelConfig, layout: str) -> list[Stage]:
    """The stages of a layout string ("Et|(tt|)*30mL"), along the model.

    Raises ValueError with the sentence, as `stage_layout.expand`.
    """
    stages: list[Stage] = []
    layer = 0
    for held in expand(layout).split("|"):
        kinds = model.moe_layer_freq[layer : layer + held.count("t")]
        layer += held.count("t")
        stages.append(
            Stage(
                embedding="E" in held,
                dense=kinds.count(0),
                moe=kinds.count(1),
                mtp=held.count("m"),
                head="L" in held,
            )
        )
    return stages


def layout_of(layers: Sequence[int], mtp: int) -> str:
    """The layout string of stages with these numbers of decoder layers, repeats folded.

    Multi-token prediction and the head lie on the last stage: [1, 2, 2, 0] with one MTP layer is
    "Et|(tt|)*2mL".
    """
    held = ["t" * number for number in layers]
    text, position = "E", 0
    while position < len(held) - 1:
        stage, times = held[position], 1
        while position + times < len(held) - 1 and held[position + times] == stage:
            times += 1
        text += f"({stage}|)*{times}" if times > 1 else f"{stage}|"
        position += times
    return f"{text}{held[-1]}{'m' * mtp}L"
