"""Import and export: Hugging Face folder ↔ Megatron checkpoint, streamed, exact, continuable.

Both directions are the same few steps: open the source (which checks it against the name table),
decide for every tensor what it becomes, lay the target out, stream the tensors into place, and last
of all write what makes the target a whole one. Nothing is loaded but the blocks in flight.

A source in FP8 keeps its scales in the checkpoint whatever the weights become, so that `--fp8`
later gives the same bytes back.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from zlib_ng.zlib_ng import crc32

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.checkpoint.conversion import journal, manifest, recode
from dsv3_plugin.checkpoint.conversion.config_json import (
    FP8_CONFIG,
    HF_CONFIG,
    exported_config,
    wants_power_of_two,
)
from dsv3_plugin.checkpoint.conversion.journal import Checksums
from dsv3_plugin.checkpoint.conversion.stream import (
    Job,
    Progress,
    Target,
    TargetFolder,
    as_sentence,
)
from dsv3_plugin.checkpoint.conversion.weights import (
    E4M3,
    DistWeights,
    HFWeights,
    Weights,
    open_weights,
)
from dsv3_plugin.checkpoint.formats.dist_metadata import METADATA
from dsv3_plugin.checkpoint.formats.dist_writer import DistLayout
from dsv3_plugin.checkpoint.formats.hf_headers import CONFIG
from dsv3_plugin.checkpoint.formats.hf_writer import HFLayout
from dsv3_plugin.checkpoint.formats.mapped import same_bytes
from dsv3_plugin.checkpoint.formats.model_file import MODEL_FILE
from dsv3_plugin.checkpoint.names import SCALE, Entry, extra_states
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.model import ModelConfig

TOKENIZER = "tokenizer"

CAST = {"bf16": torch.bfloat16, "fp32": torch.float32}

TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "merges.txt", "special_tokens_map.json", "tiktoken.model", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json",
)  # fmt: skip
"""What travels with the weights; no code (`*.py`), as transformers needs none for this family."""

_SPECIAL = ("bos", "eos", "pad")

# What upstream's loader reads from the common state of a checkpoint without a training state.
_COMMON = {
    "checkpoint_version": 3.0,
    "iteration": 0,
    "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
}


@dataclass(frozen=True)
class Report:
    """What a finished conversion did."""

    tensors: int
    """Tensors in the target."""
    source_bytes: int
    target_bytes: int
    seconds: float
    was_complete: bool = False
    """Whether all was there already; then the target was checked against its own manifest."""
    dropped: tuple[str, ...] = ()
    """Tensors of the source that carry no information (see names.DERIVED)."""
    fp8: int = 0
    """Tensors of the target that are FP8."""


def import_hf(
    hf_dir: str | Path,
    checkpoint: str | Path,
    *,
    workers: int = 2,
    dtype: Literal["bf16", "fp32", "keep-fp8"] | None = None,
    resume: bool = False,
    allow_pickle: bool = False,
    without_mtp: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Turns a Hugging Face folder into a Megatron checkpoint (`torch_dist`, a `release`).

    Args:
        hf_dir: config.json and safetensors in BF16, FP32 or DeepSeek's FP8; only read.
        checkpoint: a new folder. Any later TP/PP/EP layout, and both backends, load it.
        workers: threads.
        dtype: type of the weights in the checkpoint; None keeps each tensor's own, FP8 becoming
            BF16. "keep-fp8" leaves FP8 weights as they are: half the size, but nothing to train
            from. The router bias keeps its type always.
        resume: continue an unfinished import into the same folder.
        allow_pickle: read `*.bin` or `*.pt` weights, as tensors only.
        without_mtp: the folder has no multi-token prediction layers, though config.json promises
            them, as transformers saves this family; the checkpoint's model has none.
        progress: called now and then with (source bytes done, source bytes in all).

    Raises:
        UserError: the source is damaged or not what config.json says, or the target cannot be
            written. The target stays marked as incomplete, the source is untouched.
    """
    began = time.monotonic()
    _require_known(dtype, (*CAST, "keep-fp8"))
    root = Path(checkpoint)
    source = open_weights(Path(hf_dir), allow_pickle=allow_pickle, without_mtp=without_mtp)
    if not isinstance(source, HFWeights):
        raise UserError(
            f"{hf_dir} is a Megatron checkpoint, not a Hugging Face folder: dsv3 export is the way "
            "from there."
        )
    _require_apart(source.path, root)
    layout = DistLayout(_import_regions(source, dtype))
    jobs = [_import_job(source, target) for target in layout.targets.values()]
    jobs += [
        _check_copy(source, e) for e in source.entries if e.copy_of and e.name in source.stored
    ]
    _require_consumed(source, jobs, {*source.stored} - {*source.dropped})

    header = _header("import", source, dtype=dtype, dropped=source.dropped)
    with _sole_writer(root):
        was_complete = resume and _was_complete(root, header, workers, progress)
        if not was_complete:
            folder = TargetFolder(root, root / tracker.RELEASE, layout.files)
            try:
                done = folder.begin(header, resume=resume)
                checksums = folder.write(jobs, done, workers, progress or _silent)
            finally:
                folder.close()
            with as_sentence(root):
                layout.finish(root / tracker.RELEASE, _COMMON, extra_states(source.model))
                source.model.write(root / MODEL_FILE)
                (root / TOKENIZER).mkdir(exist_ok=True)
                _copy_files(source.path, root / TOKENIZER)
                said = (source.path / "config.json").read_bytes()
                replace_file(root / HF_CONFIG, said)
                manifest.write(root, header, source.model.name, layout.targets.values(), checksums)
                tracker.write_tracker(root, tracker.RELEASE)
                folder.complete()
    return _report(jobs, layout.targets.values(), began, was_complete, source.dropped)


def export_hf(
    checkpoint: str | Path,
    hf_dir: str | Path,
    *,
    dtype: Literal["bf16", "fp32"] | None = None,
    fp8: bool = False,
    shard_size: int = 5 * 10**9,
    workers: int = 2,
    resume: bool = False,
    model: ModelConfig | None = None,
    progress: Progress | None = None,
) -> Report:
    """Turns a Megatron checkpoint, imported or trained, into a Hugging Face folder.

    Args:
        checkpoint: a checkpoint folder (the iteration its tracker names) or an iteration's folder;
            only read. Optimizer state is passed over.
        hf_dir: a new folder.
        dtype: type of the weights; None keeps each tensor's own, kept FP8 becoming BF16. The
            router bias keeps its type always.
        fp8: write the linear weights as DeepSeek's FP8. Of an FP8 import these are the same
            weights and the same bytes as there; otherwise all, quantised in 128×128 blocks.
        shard_size: bytes of a safetensors file.
        workers: threads.
        resume: continue an unfinished export into the same folder.
        model: instead of the checkpoint's own `model.yaml`.
        progress: called now and then with (source bytes done, source bytes in all).

    Raises:
        UserError: as `import_hf`.
    """
    began = time.monotonic()
    _require_known(dtype, tuple(CAST))
    root = Path(hf_dir)
    source = open_weights(Path(checkpoint), model=model)
    if not isinstance(source, DistWeights):
        raise UserError(
            f"{checkpoint} is a Hugging Face folder, not a Megatron checkpoint: dsv3 import is the "
            "way from there."
        )
    _require_apart(source.root, root)
    layout = HFLayout(_export_tensors(source, dtype, fp8), shard_size)
    known = manifest.recorded(source)
    jobs = [job for e in source.entries for job in _export_jobs(source, e, layout.targets, known)]
    _require_consumed(source, jobs, {entry.name for entry in source.entries})
    config = _config(source, layout.targets, fp8)

    header = _header("export", source, dtype=dtype, fp8=fp8, shard_size=shard_size)
    with _sole_writer(root):
        was_complete = resume and _was_complete(root, header, workers, progress)
        if not was_complete:
            folder = TargetFolder(root, root, layout.files)
            try:
                if resume:
                    with as_sentence(root):
                        layout.recall(root)
                done = folder.begin(header, resume=resume)
                for part, head in layout.headers.items():
                    folder.put(part, head, 0)
                checksums = folder.write(jobs, done, workers, progress or _silent)
                folder.sync()
            finally:
                folder.close()
            with as_sentence(root):
                replace_file(root / "config.json", json.dumps(config, indent=2).encode())
                _copy_files(source.root / TOKENIZER, root)
                manifest.write(root, header, source.model.name, layout.targets.values(), checksums)
                layout.publish(root)
                folder.complete()
    return _report(jobs, layout.targets.values(), began, was_complete)


# --- what each tensor becomes


def _import_regions(source: HFWeights, dtype: str | None) -> list[tuple[Entry, torch.dtype]]:
    """The regions an import writes and their types, in the order in which the source has them."""
    regions = []
    for entry in source.entries:
        if entry.copy_of:
            continue
        stored = source.stored[entry.name].dtype
        to = _cast(entry, stored, dtype)
        regions.append((entry.quantised() if to == E4M3 else entry, to))
        if stored == E4M3:
            regions.append((entry.scale(), torch.float32))

    def place(region: tuple[Entry, torch.dtype]) -> tuple[str, int]:
        stored = source.stored[region[0].name]
        return stored.file, stored.position

    return sorted(regions, key=place)


def _cast(entry: Entry, stored: torch.dtype, dtype: str | None) -> torch.dtype:
    """The type that a tensor stored as `stored` is written in."""
    if entry.precision == "fp32":
        return stored
    if stored == E4M3 and dtype == "keep-fp8":
        return E4M3
    return CAST.get(dtype, torch.bfloat16 if stored == E4M3 else stored)


def _import_job(source: HFWeights, target: Target) -> Job:
    name, stored = target.name, source.stored[target.name]
    if stored.dtype == E4M3 and target.dtype != E4M3:
        blocks = partial(recode.released, source, name, target.dtype)
    elif name.endswith(SCALE):
        blocks = partial(recode.scales, source, name.removesuffix(SCALE))
    else:
        blocks = partial(recode.plain, source, name, target.dtype)
    return Job((target,), blocks, (name,), stored.nbytes)


def _check_copy(source: HFWeights, entry: Entry) -> Job:
    """A job that holds the MTP layer's copy of a tensor against the original."""
    name, original = entry.name, entry.copy_of
    stored = source.stored[name]

    def compare() -> recode.Blocks:
        same = stored.dtype == source.stored[original].dtype
        if same:
            pairs = zip(
                recode.plain(source, name, stored.dtype),
                recode.plain(source, original, stored.dtype),
                strict=True,
            )
            same = all(same_bytes(a, b) for (a,), (b,) in pairs)
        if not same:
            raise UserError(
                f"{name} in {source.path / stored.file} differs from {original}, which the "
                "multi-token prediction layer shares with the main model."
            )
        yield ()

    return Job((), compare, (name,), stored.nbytes)


def _export_tensors(
    source: DistWeights, dtype: str | None, fp8: bool
) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """(name, type, shape) of every tensor an export writes, in order."""
    # Scales say which weights of an FP8 source were FP8: the others go back as they came.
    imported = any(name.endswith(SCALE) for name in source.stored)
    for entry in source.entries:
        known = not imported or entry.name + SCALE in source.stored
        if fp8 and entry.precision == "fp8" and known:
            yield entry.name, E4M3, entry.shape
            yield entry.name + SCALE, torch.float32, entry.scale().shape
        else:
            yield entry.name, _cast(entry, source.stored[entry.name].dtype, dtype), entry.shape


def _export_jobs(
    source: DistWeights, entry: Entry, targets: dict[str, Target], recorded: dict[str, str]
) -> Iterator[Job]:
    """Args: recorded: checksums of the source's tensors, as far as they are known."""
    name, scale, check = entry.name, entry.name + SCALE, None
    target, stored = targets[name], source.stored[name]
    if target.dtype == E4M3:
        if scale not in source.stored:
            power_of_two = wants_power_of_two(source.config)
            blocks = partial(recode.quantised, source, name, power_of_two=power_of_two)
            yield Job((target, targets[scale]), blocks, (name,), stored.nbytes)
            return
        yield Job(
            (targets[scale],), partial(recode.scales, source, name), (scale,),
            source.stored[scale].nbytes, _same_as_recorded(source, targets[scale], recorded),
        )  # fmt: skip
        if stored.dtype != E4M3:
            yield Job((target,), partial(recode.requantised, source, name), (name,), stored.nbytes)
            return
    if stored.dtype == E4M3 and target.dtype != E4M3:
        blocks = partial(recode.dequantised, source, name, target.dtype)
    else:
        blocks = partial(recode.plain, source, name, target.dtype)
        if stored.dtype == target.dtype:
            check = _same_as_recorded(source, target, recorded)
    yield Job((target,), blocks, (name,), stored.nbytes, check)


def _same_as_recorded(
    source: DistWeights, target: Target, recorded: dict[str, str]
) -> Callable[[Checksums], None] | None:
    """A check that a tensor's bytes, which go to the target unchanged, are those the import wrote.

    Their checksum is then the target's own, so this costs nothing. Bytes that are changed on the
    way would have to be summed once more: `dsv3 verify CHECKPOINT` does that.
    """
    name = target.name
    if name not in recorded:
        return None

    def check(checksums: Checksums) -> None:
        if manifest.whole(target, checksums[name]) != recorded[name]:
            raise UserError(
                f"{name} in {source.path / source.stored[name].file} is damaged: its checksum is "
                f"not the one in {source.root / manifest.MANIFEST}, which the import wrote. If "
                "you changed it on purpose, remove that file."
            )

    return check


# --- what goes with the tensors


def _config(source: DistWeights, targets: dict[str, Target], fp8: bool) -> dict[str, Any]:
    """The `config.json` of an export."""
    dtype = str(targets["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    if source.config is not None:
        return exported_config(source.config, source.model, dtype, fp8)
    ids = _token_ids(source.root / TOKENIZER)
    config = hf_config(source.model, torch_dtype=dtype, **ids)
    return config | ({"quantization_config": FP8_CONFIG} if fp8 else {})


def _token_ids(tokenizer: Path) -> dict[str, int]:
    """Ids of the beginning, end and padding tokens, as far as the tokenizer's folder tells."""
    said = _read_json(tokenizer / "generation_config.json")
    words = _read_json(tokenizer / "tokenizer_config.json")
    known = {
        token["content"]: token["id"]
        for token in _read_json(tokenizer / "tokenizer.json").get("added_tokens") or ()
    }
    ids = {}
    for kind in _SPECIAL:
        word = words.get(f"{kind}_token")
        word = word.get("content") if isinstance(word, dict) else word
        found = said.get(f"{kind}_token_id", known.get(word))
        if found is not None:
            ids[f"{kind}_token_id"] = found
    return ids


def _copy_files(source: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            replace_file(folder / name, (source / name).read_bytes())


def _header(kind: str, source: Weights, **options: Any) -> dict[str, Any]:
    """What a conversion is of: a continued one has to be of the same."""
    stored = [(name, str(s.dtype), s.shape, s.file) for name, s in source.stored.items()]
    described = repr((sorted(stored), source.model.model_dump()))
    return {
        "conversion": kind,
        "source": str(source.path.resolve()),
        "source_tensors": f"{crc32(described.encode()):08x}",
        "source_files": _states(source),
        **options,
    }


def _states(source: Weights) -> dict[str, list[int]]:
    """File of the source → its size and when it was changed (ns): another file has another."""
    if isinstance(source, DistWeights):
        folder, tensors = source.checkpoint.path, source.checkpoint.contents.tensors.values()
        names = {METADATA, *(place.file for t in tensors for _, _, place in t.chunks)}
    else:
        folder, names = source.path, {CONFIG, *(stored.file for stored in source.stored.values())}
    found = {name: (folder / name).stat() for name in sorted(names)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


def _sole_writer(root: Path) -> locks.FolderLock:
    """Holds the target folder against other conversions.

    Raises UserError if another one holds it, or it cannot be made.
    """
    with as_sentence(root):
        lock = locks.take(root)
    if lock is None:
        raise UserError(
            f"another conversion is writing {root}: wait for it, or choose another folder."
        )
    return lock


def _was_complete(
    root: Path, header: dict[str, Any], workers: int, progress: Progress | None
) -> bool:
    """Whether this very conversion was finished earlier and all it wrote is still there.

    Raises UserError if another one was, or if what is there is not what was written.
    """
    finished = manifest.read(root)
    if not finished or (root / tracker.INCOMPLETE).exists():
        return False
    journal.require_same(root, finished, header)
    for difference in manifest.check(root, workers=workers, progress=progress).differences:
        raise UserError(
            f"{root} was finished and has been damaged since: {difference.name}: "
            f"{difference.what}; remove the folder and convert again."
        )
    return True


def _require_known(dtype: str | None, known: tuple[str, ...]) -> None:
    if dtype is not None and dtype not in known:
        raise UserError(f"the type '{dtype}' is not known; choose from {', '.join(known)}.")


def _require_consumed(source: Weights, jobs: list[Job], names: set[str]) -> None:
    """Refuses to convert less than everything."""
    forgotten = names - {name for job in jobs for name in job.sources}
    if forgotten:
        raise UserError(f"{min(forgotten)} in {source.path} would not be converted.")


def _require_apart(source: Path, target: Path) -> None:
    """Refuses to write into what is only to be read, and the other way round."""
    source, target = source.resolve(), target.resolve()
    if source in target.parents or target in source.parents:
        raise UserError(
            f"{target} and {source} lie inside each other: choose a folder beside the source, "
            "which a conversion leaves as it is."
        )


def _report(
    jobs: list[Job],
    targets: Iterable[Target],
    began: float,
    done: bool,
    dropped: Iterable[str] = (),
) -> Report:
    targets = list(targets)
    return Report(
        tensors=len(targets),
        source_bytes=sum(job.read_bytes for job in jobs),
        target_bytes=sum(target.nbytes for target in targets),
        seconds=time.monotonic() - began,
        was_complete=done,
        dropped=tuple(dropped),
        fp8=sum(target.dtype == E4M3 for target in targets),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _silent(done: int, total: int) -> None:
    pass
