"""What a user should know of a finished conversion: a sentence each."""

from pathlib import Path

from dsv3_plugin.checkpoint.conversion.weights import HFWeights, Weights
from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.data.tokenizer_folder import VOCABULARY_FILES, files_of


def notes_on_import(
    source: HFWeights, checkpoint: Path, *, dtype: str | None, fp8: int, without_mtp: bool
) -> tuple[str, ...]:
    """Args: dtype, without_mtp: as they were asked for; fp8: how many tensors are FP8."""
    notes = source.notes()
    if not files_of(checkpoint / TOKENIZER, VOCABULARY_FILES):
        notes.append(
            f"{source.path} has no tokenizer, so {checkpoint} has none: put the model's own "
            f"tokenizer files into {checkpoint / TOKENIZER} before text goes in (dsv3 generate, "
            "serve, eval)."
        )
    if dtype == "keep-fp8" and not fp8:
        notes.append(f"{source.path} has no FP8 weights, so --dtype keep-fp8 changed nothing.")
    if without_mtp and not source.promises_mtp:
        notes.append(_needless(source.path))
    return tuple(notes)


def notes_on_export(hf_dir: Path, *, own_scales: bool, fp8_rule: str | None) -> tuple[str, ...]:
    """Args: hf_dir: what was written; own_scales: whether weights kept the scales of an import;
    fp8_rule: for others, where it is not the usual one."""
    notes = []
    if own_scales and fp8_rule is not None:
        notes.append(
            "the weights were FP8 when they were imported and kept the scales that they had, so "
            f"--fp8-rule {fp8_rule} changed nothing: leave it out."
        )
    if not files_of(hf_dir, VOCABULARY_FILES):
        notes.append(
            f"the checkpoint has no tokenizer, so {hf_dir} has none; put the model's own "
            "tokenizer files there before text goes in."
        )
    return tuple(notes)


def notes_on_comparison(left: Weights, right: Weights, *, without_mtp: bool) -> tuple[str, ...]:
    """Args: left, right: what was compared; without_mtp: as it was asked for."""
    sides = (left, right)
    promised = any(isinstance(side, HFWeights) and side.promises_mtp for side in sides)
    return (_needless(left.path, right.path),) if without_mtp and not promised else ()


def _needless(*folders: Path) -> str:
    """That `--without-mtp` was said of folders that promise nothing to be left out."""
    where = " nor ".join(map(str, folders))
    said = f"neither {where} promises" if len(folders) > 1 else f"{where} promises no"
    what = "multi-token prediction, so --without-mtp changed nothing"
    return f"{said} {what}: leave it out."
