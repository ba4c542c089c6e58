"""A model's weights under their Hugging Face names, wherever they are stored.

`HFWeights` is a Hugging Face folder, `DistWeights` a Megatron checkpoint; both answer the same two
questions: which tensors are stored and how (`stored`), and what rows a:b of one of them are
(`rows`). Import, export and verify are written against these two and nothing else.

Opening checks every name and shape against the table: a tensor that no row names, a row that no
tensor answers, or a shape that the model does not have is a `UserError`.
"""

import json
from pathlib import Path
from typing import Protocol

import torch

from dsv3_plugin.checkpoint import absent, tracker
from dsv3_plugin.checkpoint.conversion import trained_length
from dsv3_plugin.checkpoint.conversion.config_json import kept_config
from dsv3_plugin.checkpoint.depth import another_depth
from dsv3_plugin.checkpoint.formats.dist_reader import DistCheckpoint
from dsv3_plugin.checkpoint.formats.hf_headers import CONFIG, read_config
from dsv3_plugin.checkpoint.formats.hf_reader import HFFolder, Stored
from dsv3_plugin.checkpoint.formats.model_file import MODEL_FILE, model_of_checkpoint
from dsv3_plugin.checkpoint.names import (
    BLOCK,
    DERIVED,
    QUANTISED,
    SCALE,
    WEIGHT_KEYS,
    Entry,
    config_key,
    layout,
    shape_fields,
    shape_keys,
    stacked_key,
    tied_head,
)
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import is_checkpoint
from dsv3_plugin.recipe.hf_config import assumed, model_from_hf, published
from dsv3_plugin.recipe.model import ModelConfig

E4M3 = torch.float8_e4m3fn
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class Weights(Protocol):
    """Weights of a model by Hugging Face name."""

    path: Path
    model: ModelConfig
    entries: list[Entry]
    """What the model's Hugging Face checkpoint holds, in order (scales apart)."""
    stored: dict[str, Stored]
    """What is stored: the entries, and scales as `…_scale_inv`. A copy (MTP embedding, head) may
    be missing."""
    trained_length: int | None
    """Tokens of the sequences that they were trained on; None: nothing says."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of a stored tensor, in the type it is stored in."""
        ...

    def file_of(self, name: str) -> Path:
        """The file in which a stored tensor begins."""
        ...


class HFWeights:
    """Weights in a Hugging Face folder; the model is what `config.json` says."""

    def __init__(
        self, folder: Path, *, allow_pickle: bool = False, without_mtp: bool = False
    ) -> None:
        """Opens a folder.

        without_mtp: the model has no multi-token prediction, whatever `config.json` says.
        """
        self.path = folder
        self.config = read_config(folder)
        said = self.config | ({"num_nextn_predict_layers": 0} if without_mtp else {})
        self.model = model_from_hf(said, folder.resolve().name, folder / CONFIG)
        self.promises_mtp = bool(published(self.config)["num_nextn_predict_layers"])
        """Whether `config.json` says that there is multi-token prediction."""
        self.trained_length = trained_length.of_conversion(folder)
        self._described = "config.json describes"
        self._left_out: tuple[str, ...] = ()
        if without_mtp:
            layers = range(published(self.config)["num_nextn_predict_layers"] or 0)
            first = self.model.num_layers
            self._left_out = tuple(f"model.layers.{first + number}." for number in layers)
            self._described += " once --without-mtp leaves multi-token prediction out"
        self._folder = HFFolder(folder, allow_pickle=allow_pickle)
        self.stored = self._folder.tensors
        self.entries = layout(self.model)
        head = tied_head(self.model)
        if head is not None and head.name in self.stored:
            self.entries.append(head)
        self.dropped: list[str] = []
        """Tensors that carry no information: see names.DERIVED, and those of no values, as
        transformers saves `n_shared_experts: 0`."""
        self._check()

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._folder.rows(name, start, stop)

    def file_of(self, name: str) -> Path:
        return self.path / self.stored[name].file

    def notes(self) -> list[str]:
        """What a user should know of these weights: a sentence each."""
        found = assumed(self.config, self.model)
        biases = [entry.name for entry in self.entries if entry.precision == "fp32"]
        empty = [
            name for name in biases if not self.rows(name, 0, self.stored[name].shape[0]).any()
        ]
        if empty:
            found.append(
                f"{len(empty)} of the {len(biases)} router biases in {self.path} are all zero, as "
                "before any training: if this model was trained, whatever saved it lost them (the "
                f"first is {empty[0]})."
            )
        return found

    def _check(self) -> None:
        self._check_quantisation()
        expected: dict[str, Entry] = {}
        for entry in self.entries:
            expected[entry.name] = entry
            if entry.precision == "fp8":
                expected[entry.name + SCALE] = entry.scale()
        for name, stored in self.stored.items():
            if name in expected:
                self._check_tensor(name, stored, expected[name])
            elif name.endswith(DERIVED) or not stored.nbytes:
                self.dropped.append(name)
            elif self._left_out and name.startswith(self._left_out):
                raise UserError(
                    f"{name} in {self.path / stored.file} is of the multi-token prediction that "
                    "--without-mtp leaves out: this folder has it, so leave --without-mtp out."
                )
            else:
                depth = another_depth(self.stored, self.model)
                way = (
                    f": {depth}."
                    if depth is not None
                    else f"{self._said(name)}: take the folder of that model alone, with its "
                    "tensors called as DeepSeek calls them."
                )
                raise UserError(
                    f"{name} in {self.path / stored.file} is no tensor of the model that "
                    f"{self._described}{way}"
                )
        for entry in self.entries:
            if entry.name not in self.stored and entry.copy_of is None:
                sentence = _missing(entry, self.path, self.model, "give --without-mtp")
                raise UserError(sentence.removesuffix(".") + self._said(entry.name) + ".")

    def _said(self, name: str) -> str:
        """What config.json says of whether there is a tensor, to end a sentence with."""
        key = config_key(name)
        config = published(self.config)
        return f" ({key} {json.dumps(config[key])})" if key in config else ""

    def _check_quantisation(self) -> None:
        """Refuses FP8 that config.json does not announce, and announced FP8 that is not there.

        What a loader makes of the bytes hangs on it: the tensors alone are not the model.
        """
        where, said = self.path / CONFIG, self.config.get("quantization_config")
        fp8 = next((name for name, stored in self.stored.items() if stored.dtype == E4M3), None)
        if said is None:
            if fp8 is not None:
                file = self.path / self.stored[fp8].file
                raise UserError(f"{fp8} in {file} is FP8, but {where} has no quantization_config.")
            return
        if not isinstance(said, dict):
            raise UserError(f"{where}: quantization_config {said!r} is no object.")
        for key, only in {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}.items():
            if said.get(key, only) != only:
                raise UserError(
                    f"{where}: quantization_config.{key} {said[key]!r} is not supported, only "
                    f"{only!r}."
                )
        if fp8 is None:
            raise UserError(
                f"{where} has a quantization_config, but no tensor beside it is FP8: remove it if "
                "the weights were taken out of FP8."
            )

    def _check_tensor(self, name: str, stored: Stored, entry: Entry) -> None:
        where = self.path / stored.file
        if stored.shape != entry.shape:
            said, config = shape_keys(name, stored.shape, entry.shape), published(self.config)
            by = " and ".join(f"{key} {json.dumps(config.get(key))}" for key in said)
            raise UserError(
                f"{name} in {where} has shape {list(stored.shape)}; by {by or 'what is said'} in "
                f"{self.path / CONFIG} it is {list(entry.shape)}: take the config.json that "
                "belongs to these weights."
            )
        is_scale = name.endswith(SCALE)
        allowed = (torch.float32,) if is_scale else FLOATS
        if stored.dtype == E4M3 and entry.precision == "fp8":
            if name + SCALE not in self.stored:
                raise UserError(f"{name} in {where} is FP8 and has no {name}{SCALE} beside it.")
        elif stored.dtype not in allowed:
            raise UserError(f"{name} in {where} has the type {stored.dtype}, which is not one "
                            "of its possible types.")  # fmt: skip
        if is_scale:
            weight = self.stored.get(name.removesuffix(SCALE))
            if weight is None or weight.dtype != E4M3:
                raise UserError(f"{name} in {where} scales no FP8 weight.")


class DistWeights:
    """Weights in a Megatron `torch_dist` checkpoint, imported or trained, of any layout.

    Scales are present where an FP8 source was imported: they are what its FP8 form is rebuilt from.
    """

    def __init__(self, directory: Path, model: ModelConfig | None = None) -> None:
        self.path = directory
        iteration = tracker.find(directory)
        self.checkpoint = DistCheckpoint(iteration)
        self.root = iteration.parent
        """The folder with what belongs to all iterations: `model.yaml`, `tokenizer/`."""
        self.config = kept_config(self.root)
        """The `config.json` of the folder it was imported from."""
        self.model = model or model_of_checkpoint(directory, iteration, self.checkpoint.contents)
        self.trained_length = trained_length.of_checkpoint(iteration, self.checkpoint.contents)
        self.entries = layout(self.model)
        self.stored: dict[str, Stored] = {}
        self._places: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {}
        self._named: set[str] = set()
        self.quantised = False
        """Whether weights are stored in FP8, to be read with their scales."""
        for entry in self.entries:
            self._find(entry)
        for key in self.checkpoint.contents.tensors:
            if key.startswith(WEIGHT_KEYS) and key not in self._named:
                raise UserError(
                    f"{key} in {iteration / self.checkpoint.file(key)} is no weight of the model "
                    f"that {MODEL_FILE} describes."
                )

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        key, offset, shape = self._places[name]
        axis = len(offset) - len(shape)
        offset = (*offset[:axis], offset[axis] + start, *offset[axis + 1 :])
        shape = (stop - start, *shape[1:])
        return self.checkpoint.read(key, offset, (1,) * axis + shape).view(shape)

    def file_of(self, name: str) -> Path:
        key, offset, _ = self._places[name]
        return self.checkpoint.path / self.checkpoint.file(key, offset)

    def _find(self, entry: Entry) -> None:
        keys = [(entry.key, entry.offset, entry.global_shape)]
        if entry.alias:
            keys.append((entry.alias, entry.offset, entry.global_shape))
        if entry.precision == "fp8":
            keys.append((entry.key + QUANTISED, entry.offset, entry.global_shape))
        for key, offset, shape in list(keys):
            if stacked := stacked_key(key):
                keys.append((stacked[0], (stacked[1], *offset), (self.model.num_layers, *shape)))
        present = [place for place in keys if place[0] in self.checkpoint]
        if not present:
            mend = f"set mtp_num_layers to 0 in {MODEL_FILE}"
            raise UserError(_missing(entry, self.checkpoint.path, self.model, mend))
        self._named.update(key for key, _, _ in present)
        self.quantised |= present[0][0].endswith(QUANTISED)
        self._take(entry, *present[0])
        if entry.precision == "fp8":
            scale = entry.scale()
            if scale.key in self.checkpoint:
                self._named.add(scale.key)
                self._take(scale, scale.key, scale.offset, scale.global_shape)
            elif present[0][0].endswith(QUANTISED):
                raise UserError(f"{self.checkpoint.path} holds {present[0][0]} without its scales.")

    def _take(
        self, entry: Entry, key: str, offset: tuple[int, ...], expected: tuple[int, ...]
    ) -> None:
        shape = self.checkpoint.shape(key)
        # Upstream pads the vocabulary; what is beyond the model's own is padding.
        padded = entry.shape[0] == self.model.vocab_size and shape[1:] == expected[1:]
        if shape != expected and not (padded and shape[0] > expected[0]):
            fields = shape_fields(entry, shape, expected)
            said = [f"{field} {getattr(self.model, field)}" for field in fields] or [MODEL_FILE]
            raise UserError(
                f"{key} in {self.checkpoint.path / self.checkpoint.file(key)} has shape "
                f"{list(shape)}; by {' and '.join(said)} it is {list(expected)}: put the "
                f"{MODEL_FILE} back that belongs to these weights."
            )
        dtype = self.checkpoint.dtype(key)
        if dtype not in (*FLOATS, E4M3):
            raise UserError(f"{key} in {self.checkpoint.path} has the unsupported type {dtype}.")
        self._places[entry.name] = key, offset, entry.shape
        self.stored[entry.name] = Stored(dtype, entry.shape, self.checkpoint.file(key))


def open_weights(
    path: Path,
    *,
    model: ModelConfig | None = None,
    allow_pickle: bool = False,
    without_mtp: bool = False,
) -> Weights:
    """The weights at `path`: a Hugging Face folder or a Megatron checkpoint.

    Args:
        path: the folder.
        model: what a checkpoint is of, instead of its own `model.yaml`.
        allow_pickle, without_mtp: how a Hugging Face folder is read (see `HFWeights`).

    Raises UserError if it is neither, or marked as unfinished.
    """
    absent.refuse_no_folder(path)
    tracker.refuse_unfinished(path)
    if is_checkpoint(path):
        return DistWeights(path, model)
    tracker.refuse_run_folder(path)
    if not (path / CONFIG).is_file():
        raise absent.neither(path)
    return HFWeights(path, allow_pickle=allow_pickle, without_mtp=without_mtp)


def _missing(entry: Entry, where: Path, model: ModelConfig, without_mtp: str) -> str:
    """Args: without_mtp: how to say that there is no multi-token prediction."""
    sentence = f"{entry.name} ({entry.key}) is missing from {where}"
    if entry.key.startswith("mtp.") and model.mtp_num_layers:
        return (
            f"{sentence}: the model is said to have {model.mtp_num_layers} multi-token prediction "
            f"layer(s); if these weights have none, {without_mtp}."
        )
    return f"{sentence}, though its configuration asks for it."
