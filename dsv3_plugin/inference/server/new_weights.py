"""Other weights of the served model, from a checkpoint or a Hugging Face folder below one root."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from megatron.core.models.gpt.gpt_model import GPTModel

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.conversion.weights import HFWeights, open_weights
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.checkpoint.loadable import tokenizer_or_none
from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer
from dsv3_plugin.data.tokenizer_folder import files_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.engine import Engine
from dsv3_plugin.recipe.model import ModelConfig

_OF_TRAINING = {
    "name", "init_method_std", "moe_aux_loss_coeff", "moe_router_load_balancing_type",
}  # fmt: skip
"""What of a model's description does not change what it computes."""


@dataclass(frozen=True)
class NewWeights:
    """Reads weights that are to take the served ones' place.

    Attributes:
        root: the folder that they have to lie in.
        config: of the served model.
        tokenizer: of the served model.
    """

    root: Path
    config: ModelConfig
    tokenizer: TextTokenizer

    def read(self, name: str) -> GPTModel:
        """A whole model of the weights in a folder, apart from the served one.

        Args:
            name: of the folder, from the root or from /.

        Raises:
            UserError: it, or a file in it, leads out of the root; it cannot be loaded; it is
                another model's.
        """
        folder = self._inside(name)
        weights = open_weights(folder)
        self._refuse_other(folder, weights.model)
        is_hf = isinstance(weights, HFWeights)
        self._refuse_other_tokenizer(folder if is_hf else tokenizer_or_none(folder))
        if not is_hf:
            return load_for_inference(folder)[0]
        with tempfile.TemporaryDirectory(prefix="dsv3-weights-") as whole:
            import_hf(folder, Path(whole) / "checkpoint")
            return load_for_inference(Path(whole) / "checkpoint")[0]

    def _inside(self, name: str) -> Path:
        """The folder of that name, no file of which lies elsewhere by a link."""
        root = Path(os.path.realpath(self.root))
        try:
            folder = Path(os.path.realpath(root / name))
            found = [folder, *folder.rglob("*")] if folder.is_relative_to(root) else [folder]
        except (OSError, ValueError) as error:
            raise UserError(f"{name!r} cannot be read: {error}.") from None
        for path in found:
            if not Path(os.path.realpath(path)).is_relative_to(root):
                raise UserError(
                    f"{name} leads out of the folder that weights are taken from: put them into "
                    "it, or name another with --weights-root."
                )
        if not folder.is_dir():
            raise UserError(f"There is no folder {name} to take weights from.")
        return folder

    def _refuse_other(self, folder: Path, other: ModelConfig) -> None:
        served, found = (model.model_dump(exclude=_OF_TRAINING) for model in (self.config, other))
        for field, value in served.items():
            if found[field] != value:
                raise UserError(
                    f"{folder} is of another model: its {field} is {found[field]}, and the served "
                    f"one's {value}."
                )

    def _refuse_other_tokenizer(self, folder: Path | None) -> None:
        if folder is None or not files_of(folder):
            return
        if open_tokenizer(folder).digest != self.tokenizer.digest:
            raise UserError(f"{folder} has another tokenizer than the one that is served.")


def take_over(engine: Engine, new: GPTModel) -> int:
    """Write another model's weights over those that an engine computes with: their version."""
    engine.model.load_state_dict(new.state_dict())
    engine.weights_changed()
    return engine.version
