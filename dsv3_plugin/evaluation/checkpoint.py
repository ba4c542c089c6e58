"""What is evaluated: a checkpoint, its tokenizer, and the run that it is of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.core.models.gpt.gpt_model import GPTModel

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.data.tokenizer import TextTokenizer, encode_texts
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
from dsv3_plugin.inference.generate import generate
from dsv3_plugin.recipe import overrides
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.places import run_at, weights_at
from dsv3_plugin.recipe.validation import validate

_OF_POSITIONS = (
    "rope_type", "rotary_base", "rotary_scaling_factor", "original_max_position_embeddings",
    "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "max_position_embeddings",
)  # fmt: skip
"""What of a model can be changed and leaves its weights what they are."""


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is.

    Attributes:
        folder: of the checkpoints, or of one iteration.
        run: the folder of the run that they are of; None: they lie in none.
    """

    folder: Path
    run: RunFolder | None

    @classmethod
    def named(cls, path: Path) -> "Place":
        """The checkpoints of a run's folder, or of a folder of checkpoints.

        Raises:
            UserError: there is no checkpoint there.
        """
        folder = weights_at(path)
        tracker.find(folder)
        return cls(folder, run_at(path))


@dataclass(frozen=True)
class Evaluated:
    """A model to evaluate.

    Attributes:
        model: on this process, whole, in evaluation mode.
        config: what it is, as it is evaluated.
    """

    model: GPTModel
    config: ModelConfig

    @classmethod
    def load(cls, place: Place, changes: Sequence[str] = ()) -> "Evaluated":
        """The newest model of a place.

        Args:
            place: of the checkpoint.
            changes: `model.KEY=VALUE` of what positions are made of; the weights stay.

        Raises:
            UserError: the checkpoint cannot be loaded, or a change is of something else.
        """
        change = [_of_positions(overrides.parse(text)) for text in changes]

        def changed(trained: ModelConfig) -> ModelConfig:
            data = trained.model_dump()
            for one in change:
                data |= one.read(ModelConfig)
            return validate(ModelConfig, data, " ".join(changes)) if change else trained

        return cls(*load_for_inference(place.folder, as_model=changed))

    def proceed(self, tokens: Sequence[int], count: int, stop: int) -> list[int]:
        """The likeliest tokens behind others, at most so many, none from `stop` on."""
        return [*generate(self.model, tokens, max_new_tokens=count, stop=[stop])]


@dataclass(frozen=True)
class Coder:
    """A checkpoint's tokenizer, as prompts are made with it."""

    tokenizer: TextTokenizer

    @classmethod
    def of(cls, place: Place) -> "Coder":
        """The tokenizer beside a checkpoint.

        Raises:
            UserError: there is none, or it is another than the model was trained with.
        """
        return cls(tokenizer_of_checkpoint(place.folder))

    def encode(self, text: str) -> list[int]:
        return encode_texts(self.tokenizer.backend, [text])[0]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    @property
    def begin(self) -> tuple[int, ...]:
        """Tokens of its own that a tokenizer begins every text with: DeepSeek's has one."""
        mark = "."
        alone, ids = self.encode(mark), self.tokenizer.backend.encode(mark).ids
        return tuple(ids[: ids.index(alone[0])]) if alone[0] in ids else ()


def _of_positions(change: overrides.Override) -> overrides.Override:
    """A change of a model's positions, as the model's own.

    Raises:
        UserError: it is of something else.
    """
    first, *rest = change.keys
    if first != "model" or rest not in ([key] for key in _OF_POSITIONS):
        raise UserError(
            f"'{change.text}' would make it another model than the one that was trained: what can "
            f"be changed for an evaluation is model.{', model.'.join(_OF_POSITIONS)}"
        )
    return overrides.Override(change.text, tuple(rest), change.value)
