"""What is in a checkpoint or a Hugging Face folder, from headers alone.

Reads no tensor and imports no torch, so it answers in seconds. Unlike the converters it does not
stop at the first thing that does not fit: it lists what is missing, what is foreign and what has
another shape than the configuration says.
"""

import contextlib
import gc
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint import absent, tracker
from dsv3_plugin.checkpoint.conversion import journal
from dsv3_plugin.checkpoint.depth import another_depth
from dsv3_plugin.checkpoint.formats.broken_files import BrokenFiles
from dsv3_plugin.checkpoint.formats.dist_metadata import METADATA, check_tensors, read_contents
from dsv3_plugin.checkpoint.formats.hf_headers import (
    CONFIG,
    ITEMSIZE,
    pickled_files,
    read_config,
    survey,
)
from dsv3_plugin.checkpoint.formats.model_file import (
    MODEL_FILE,
    model_of_checkpoint,
    saved_arguments,
)
from dsv3_plugin.checkpoint.names import (
    DERIVED,
    QUANTISED,
    SCALE,
    WEIGHT_KEYS,
    Entry,
    layout,
    shape_fields,
    shape_keys,
    stacked_key,
    tied_head,
)
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import is_checkpoint
from dsv3_plugin.recipe.hf_config import model_from_hf
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.model_names import told_name
from dsv3_plugin.recipe.places import weights_at

Shape = tuple[int, ...]

_MISSING = ", MISSING"
_KNOWN_OF_UNFINISHED = ("path", "kind", "unfinished", "written", "damaged", "advice", "complete")


@dataclass
class Findings:
    """What `inspect` tells."""

    path: str
    kind: str
    """"Hugging Face folder" or "Megatron checkpoint", with the iteration."""
    model: str | None = None
    """Name of the shipped model that has this configuration, or what it was called."""
    layers: str = ""
    experts: str = ""
    mtp: str = ""
    tensors: int = 0
    values: int = 0
    """Values of the tensors that belong to the model, scales apart."""
    bytes: int = 0
    files: int = 0
    dtypes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Type → number of tensors and bytes."""
    unfinished: bool = False
    """Whether a conversion into it was not finished; then nothing else is looked at."""
    written: int = 0
    """Tensors that the unfinished conversion is sure to have written."""
    pickled: list[str] = field(default_factory=list)
    """Files of pickled weights, which are not opened: nothing is known of their tensors."""
    optimizer_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Sentences on what cannot be read."""
    broken_files: list[str] = field(default_factory=list)
    """Files of weights that are missing, cut short or damaged; what they hold is not `missing`."""
    advice: list[str] = field(default_factory=list)
    """Ways out, a sentence each."""

    @property
    def complete(self) -> bool:
        """Whether everything the configuration asks for is there, and nothing else."""
        odd = self.missing or self.foreign or self.misshapen or self.damaged
        return not (self.unfinished or self.pickled or odd)

    def to_mapping(self) -> dict[str, Any]:
        """For JSON; of an unfinished target None is all that is not known."""
        said = {**asdict(self), "complete": self.complete}
        if self.unfinished:
            said |= {key: None for key in said if key not in _KNOWN_OF_UNFINISHED}
        return said


def inspect(path: str | Path) -> Findings:
    """Looks at a Hugging Face folder, a Megatron checkpoint, one of its iterations, or a run's.

    Raises UserError if it is none of these, or nothing can be said of it.
    """
    path = Path(path)
    absent.refuse_no_folder(path)
    with _without_collector():
        return _inspect(weights_at(path))


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """A large model is 100,000 records, made at once: collecting in between doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _inspect(path: Path) -> Findings:
    for folder in (path, path.parent):
        # The mark of a checkpoint lies beside the iterations.
        if (folder / tracker.INCOMPLETE).exists() and (folder == path or _is_iteration(path)):
            return _inspect_unfinished(path, folder / tracker.INCOMPLETE)
    if is_checkpoint(path):
        return _inspect_checkpoint(path)
    if (path / CONFIG).is_file() or any(path.glob("*.safetensors")):
        return _inspect_folder(path)
    raise absent.neither(path)


def _is_iteration(path: Path) -> bool:
    return path.name == tracker.RELEASE or (path / METADATA).exists()


def _inspect_unfinished(path: Path, mark: Path) -> Findings:
    """What the journal of a conversion says: that it is unfinished, and how far it came."""
    kinds = {"import": "Megatron checkpoint", "export": "Hugging Face folder"}
    findings = Findings(str(path), "unfinished conversion", unfinished=True)
    try:
        header, done = journal.peek(mark)
    except UserError as error:
        findings.damaged.append(str(error))
        return findings
    findings.kind = kinds.get(header.get("conversion"), findings.kind)
    findings.written = len(done)
    findings.advice.append(
        f"what was begun is gone on with by: {journal.command_to_go_on(mark.parent, header)}"
    )
    return findings


def _inspect_folder(path: Path) -> Findings:
    findings = Findings(str(path), "Hugging Face folder")
    found = survey(path)
    described = found.tensors
    findings.files = len({d.file for d in described.values()})
    _count(findings, [(d.dtype, d.shape) for d in described.values()])
    _note_broken(findings, found.broken)
    findings.damaged += found.unlike
    pickles: list[Path] = []
    if not described and not found.broken:
        try:
            pickles = pickled_files(path)
        except BrokenFiles as error:
            _note_broken(findings, error.files)
    if not (path / CONFIG).is_file():
        findings.missing.append(CONFIG)
        return findings
    if not (described or pickles or findings.broken_files):
        raise UserError(
            f"{path} holds no weights: it has neither *.safetensors nor *.bin files, so copy those "
            f"of the model that its {CONFIG} describes there."
        )
    model = model_from_hf(read_config(path), path.resolve().name, path / CONFIG)
    if not described:
        findings.pickled = [file.name for file in pickles]
        findings.files = len(pickles)
        findings.bytes = sum(file.stat().st_size for file in pickles)
        _describe(findings, model)
        return findings
    expected: dict[str, Shape] = {}
    if head := tied_head(model):
        expected[head.name] = head.shape
    for entry in layout(model):
        expected[entry.name] = entry.shape
        if entry.precision == "fp8" and entry.name + SCALE in described:
            expected[entry.name + SCALE] = entry.scale().shape
        if entry.name not in described:
            findings.missing.append(entry.name)
        elif described[entry.name].dtype == "float8_e4m3fn":
            expected[entry.name + SCALE] = entry.scale().shape
            if entry.name + SCALE not in described:
                findings.missing.append(entry.name + SCALE)
    # Those of a file that is broken are there again with it.
    findings.missing = [n for n in findings.missing if found.index.get(n) not in found.broken]
    for name, tensor in described.items():
        if name not in expected and not name.endswith(DERIVED) and tensor.nbytes:
            findings.foreign.append(name)
        elif name in expected and tensor.shape != expected[name]:
            keys = shape_keys(name, tensor.shape, expected[name])
            findings.misshapen.append(_misshapen(name, tensor.shape, expected[name], keys))
    _describe(findings, model, "model.layers.{}.".format, {**found.index, **described})
    layers = range(model.num_layers, model.num_layers + (model.mtp_num_layers or 0))
    of_prediction = tuple(f"model.layers.{number}." for number in layers)
    others = [name for name in findings.missing if not name.startswith(of_prediction)]
    if findings.foreign and (depth := another_depth(described, model)):
        findings.advice.append(f"{depth}.")
    elif findings.mtp.endswith(_MISSING) and not others and not findings.foreign:
        findings.advice.append(
            "of the multi-token prediction that config.json promises nothing is there, as "
            "transformers saves this family: dsv3 import --without-mtp takes the folder without it."
        )
    return findings


def _note_broken(findings: Findings, files: dict[str, str]) -> None:
    findings.broken_files += files
    findings.damaged += files.values()


def first_misfit(folder: Path, model: ModelConfig) -> str | None:
    """The first difference between the weights in an iteration's folder and a model's, in words.

    Returns:
        None: as far as names and shapes tell, they are the model's.
    """
    stored = {
        key: tensor.shape
        for key, tensor in read_contents(folder).tensors.items()
        if key.startswith(WEIGHT_KEYS)
    }
    known: set[str] = set()
    for entry in layout(model):
        found = [(key, shape) for key, shape in keys_of(entry, model) if key in stored]
        if not found:
            return f"{entry.key} is missing"
        for key, shape in found:
            if not fits(stored[key], shape, model):
                return f"{key} is {list(stored[key])}, the model's is {list(shape)}"
            known.add(key)
        if entry.precision == "fp8":
            known.add(entry.scale().key)
    return next((f"{key} belongs to no layer of the model" for key in stored.keys() - known), None)


def fits(stored: Shape, shape: Shape, model: ModelConfig) -> bool:
    """Whether a stored tensor is what a model has there; a vocabulary may have been padded."""
    padded = (model.vocab_size, *stored[1:]) == shape
    return stored == shape or (padded and stored[0] > shape[0])


def _inspect_checkpoint(path: Path) -> Findings:
    folder = tracker.find(path)
    findings = Findings(str(path), f"Megatron checkpoint, {folder.name}")
    if folder != path and (sentence := tracker.untracked(folder)) is not None:
        findings.advice.append(sentence)
    try:
        contents = read_contents(folder)
    except BrokenFiles as error:
        _note_broken(findings, error.files)
        return findings
    check_tensors(folder, contents)
    weights = {k: t for k, t in contents.tensors.items() if k.startswith(WEIGHT_KEYS)}
    places = [place.file for tensor in contents.tensors.values() for _, _, place in tensor.chunks]
    findings.files = len({*places, *(place.file for place in contents.objects.values())})
    findings.optimizer_bytes = sum(
        tensor.nbytes for key, tensor in contents.tensors.items() if key not in weights
    )
    try:
        model = model_of_checkpoint(path, folder, contents)
    except UserError as error:
        _count(findings, [(t.dtype, t.shape) for t in weights.values()])
        described = any((where / MODEL_FILE).exists() for where in (path, folder.parent))
        if saved_arguments(folder, contents) is None and not described:
            findings.missing.append(MODEL_FILE)
            findings.advice.append(str(error))
        else:
            findings.damaged.append(str(error))
        return findings
    known: set[str] = set()
    counted: dict[tuple, tuple[str, Shape]] = {}
    for entry in layout(model):
        found = [(key, shape) for key, shape in keys_of(entry, model) if key in weights]
        if not found:
            findings.missing.append(entry.key)
            continue
        scale = entry.scale() if entry.precision == "fp8" else None
        if scale is not None and scale.key in weights:
            found.append((scale.key, scale.global_shape))
        elif found[0][0].endswith(QUANTISED):
            findings.missing.append(scale.key)
        for key, shape in found:
            stored = weights[key]
            if not fits(stored.shape, shape, model):
                keys = shape_fields(entry, stored.shape, shape)
                findings.misshapen.append(_misshapen(key, stored.shape, shape, keys))
            known.add(key)
            # A second name for the same bytes counts once.
            counted[stored.chunks[0][2]] = stored.dtype, stored.shape
    findings.missing = list(dict.fromkeys(findings.missing))
    findings.misshapen = list(dict.fromkeys(findings.misshapen))
    findings.foreign = [key for key in weights if key not in known]
    counted |= {weights[k].chunks[0][2]: (weights[k].dtype, weights[k].shape)
                for k in findings.foreign}  # fmt: skip
    _count(findings, list(counted.values()))
    _describe(findings, model, lambda n: f"mtp.layers.{n - model.num_layers}.", weights)
    return findings


def keys_of(entry: Entry, model: ModelConfig) -> list[tuple[str, Shape]]:
    """Every key a checkpoint may keep an entry under, and its shape there."""
    keys = [(entry.key, entry.global_shape)]
    if entry.alias:
        keys.append((entry.alias, entry.global_shape))
    if entry.precision == "fp8":
        keys.append((entry.key + QUANTISED, entry.global_shape))
    for key, shape in list(keys):
        if stacked := stacked_key(key):
            keys.append((stacked[0], (model.num_layers, *shape)))
    return keys


def _count(findings: Findings, tensors: list[tuple[str, Shape]]) -> None:
    number, size = Counter(), Counter()
    for dtype, shape in tensors:
        number[dtype] += 1
        size[dtype] += math.prod(shape) * ITEMSIZE[dtype]
    findings.tensors, findings.bytes = number.total(), size.total()
    findings.dtypes = {
        dtype: {"tensors": number[dtype], "bytes": size[dtype]} for dtype in sorted(number)
    }


def _describe(
    findings: Findings, model: ModelConfig, prefix: Any = None, names: Any = None
) -> None:
    """Args: prefix, names: how an MTP layer's tensors begin, and the tensors; None if unknown."""
    findings.model = told_name(model)
    findings.values = sum(math.prod(entry.shape) for entry in layout(model))
    dense = model.moe_layer_freq.count(0)
    findings.layers = f"{model.num_layers} ({dense} dense, {model.num_layers - dense} MoE)"
    if model.num_moe_experts:
        findings.experts = f"{model.num_moe_experts} routed, {model.moe_router_topk} per token"
    if model.mtp_num_layers:
        there = names is None
        if names is not None:
            starts = tuple(prefix(model.num_layers + d) for d in range(model.mtp_num_layers))
            there = any(name.startswith(starts) for name in names)
        findings.mtp = f"{model.mtp_num_layers} layer(s)" + ("" if there else _MISSING)


def _misshapen(name: str, shape: Shape, expected: Shape, keys: list[str]) -> str:
    by = f", by {' and '.join(keys)}" if keys else ""
    return f"{name}: {list(shape)} instead of {list(expected)}{by}"
