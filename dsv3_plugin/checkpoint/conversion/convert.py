"""Import and export: Hugging Face folder ↔ Megatron checkpoint, streamed, exact, continuable.

Both directions are the same few steps: open the source (which checks it against the name table),
decide for every tensor what it becomes, lay the target out, stream the tensors into place, and last
of all write what makes the target a whole one. Nothing is loaded but the blocks in flight.

A source in FP8 keeps its scales in the checkpoint whatever the weights become, so that `--fp8`
later gives the same bytes back.
"""

import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dsv3_plugin.checkpoint import absent, tracker, trained_on
from dsv3_plugin.checkpoint.conversion import manifest, manifest_file
from dsv3_plugin.checkpoint.conversion.config_json import HF_CONFIG, exported_config, new_config
from dsv3_plugin.checkpoint.conversion.identity import header_of, is_another, was_complete
from dsv3_plugin.checkpoint.conversion.job import NOTHING, Job, Kept, kept_of
from dsv3_plugin.checkpoint.conversion.jobs import (
    CAST,
    export_jobs,
    export_tensors,
    import_jobs,
    import_regions,
)
from dsv3_plugin.checkpoint.conversion.journal import Checksums
from dsv3_plugin.checkpoint.conversion.notes import notes_on_export, notes_on_import
from dsv3_plugin.checkpoint.conversion.recode import FP8_RULES
from dsv3_plugin.checkpoint.conversion.stream import (
    Ahead,
    Announce,
    Progress,
    TargetFolder,
    as_sentence,
    free_bytes,
    refuse_taken,
    sole_writer,
    written_before,
)
from dsv3_plugin.checkpoint.conversion.tokenizer_files import (
    CARRIED,
    TOKEN_IDS,
    token_ids,
)
from dsv3_plugin.checkpoint.conversion.type_names import KEEP_FP8, require_known
from dsv3_plugin.checkpoint.conversion.weights import (
    E4M3,
    DistWeights,
    HFWeights,
    Weights,
    open_weights,
)
from dsv3_plugin.checkpoint.formats.dist_writer import DistLayout
from dsv3_plugin.checkpoint.formats.hf_headers import CONFIG
from dsv3_plugin.checkpoint.formats.hf_writer import HFLayout
from dsv3_plugin.checkpoint.formats.model_file import MODEL_FILE
from dsv3_plugin.checkpoint.formats.shard_size import DEFAULT_SHARD
from dsv3_plugin.checkpoint.formats.sharding import Sharding
from dsv3_plugin.checkpoint.formats.target import Target
from dsv3_plugin.checkpoint.names import EMBEDDING, SCALE, extra_states
from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.data.tokenizer_folder import copy_tokenizer, files_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.places import weights_at

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
    source_tensors: int = 0
    """Tensors in the source."""
    copies: int = 0
    """Copies that the multi-token prediction layers, or a tied head, have of other tensors: an
    import compares them and keeps the originals, an export writes them again."""
    scales: int = 0
    """Tensors of the target that are scales of FP8 weights."""
    dropped: tuple[str, ...] = ()
    """Tensors of the source that carry no information (see names.DERIVED)."""
    fp8: int = 0
    """Tensors of the target that are FP8."""
    kept: Kept = NOTHING
    """Of the target, what an earlier run had written: it was read back, and not made again."""
    notes: tuple[str, ...] = ()
    """What the user should know: a sentence each."""


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
    announce: Announce | None = None,
) -> Report:
    """Turns a Hugging Face folder into a Megatron checkpoint (`torch_dist`, a `release`).

    Args:
        hf_dir: config.json and safetensors in BF16, FP16, FP32 or DeepSeek's FP8; only read.
        checkpoint: a new folder. Any later TP/PP/EP layout, and both backends, load it.
        workers: threads.
        dtype: type of the weights in the checkpoint; None keeps each tensor's own, FP8 becoming
            BF16; nothing becomes FP16. "keep-fp8" leaves FP8 weights as they are: half the size,
            but nothing to train from. The router bias keeps its type always.
        resume: continue an unfinished import into the same folder.
        allow_pickle: read `*.bin` or `*.pt` weights, as tensors only.
        without_mtp: the folder has no multi-token prediction layers, though config.json promises
            them, as transformers saves this family; the checkpoint's model has none.
        progress: called now and then with (source bytes done, source bytes in all), first with
            those that an earlier run has done.
        announce: called before anything is written, with what will be.

    Raises:
        UserError: the source is damaged or not what config.json says, or the target cannot be
            written. The target stays marked as incomplete, the source is untouched.
    """
    began = time.monotonic()
    require_known(dtype, (*CAST, KEEP_FP8))
    root = Path(checkpoint)
    absent.refuse_no_folder(Path(hf_dir), "a Hugging Face folder")
    tracker.refuse_unfinished(Path(hf_dir))
    absent.refuse_checkpoint(Path(hf_dir))
    source = open_weights(Path(hf_dir), allow_pickle=allow_pickle, without_mtp=without_mtp)
    assert isinstance(source, HFWeights)
    _require_apart(source.path, root)
    layout = DistLayout(import_regions(source, dtype))
    jobs = import_jobs(source, layout.targets.values())
    _require_consumed(source, jobs, {*source.stored} - {*source.dropped})

    said = {"allow_pickle": allow_pickle, "without_mtp": without_mtp}
    read_so = {option: True for option, given in said.items() if given}
    header = header_of("import", source, dtype=dtype, dropped=source.dropped, **read_so)
    with sole_writer(root):
        kept = None
        is_done = resume and was_complete(root, header, workers, progress)
        if not is_done:
            refuse_taken(root, header, resume=resume)
            before = written_before(root, header, resume=resume)
            _announce(announce, jobs, layout.files, root, before)
            folder = TargetFolder(root, root / tracker.RELEASE, layout.files)
            try:
                done = folder.begin(header, resume=resume)
                checksums = folder.write(jobs, done, workers, progress or _silent)
                kept = folder.kept
            finally:
                folder.close()
            with as_sentence(root):
                layout.finish(root / tracker.RELEASE, _COMMON, extra_states(source.model))
                replace_file(root / MODEL_FILE, source.model.to_yaml().encode())
                with whole_folder(root / TOKENIZER) as tokenizer:
                    copy_tokenizer(source.path, tokenizer, CARRIED)
                replace_file(root / HF_CONFIG, inside(source.path, CONFIG).read_bytes())
                manifest.write(root, header, source, layout.targets.values(), checksums)
                tracker.write_tracker(root, tracker.RELEASE)
                folder.complete()
    report = _report(source, jobs, layout.targets.values(), began, kept)
    notes = notes_on_import(source, root, dtype=dtype, fp8=report.fp8, without_mtp=without_mtp)
    return replace(report, dropped=tuple(source.dropped), notes=notes)


def export_hf(
    checkpoint: str | Path,
    hf_dir: str | Path,
    *,
    dtype: Literal["bf16", "fp32"] | None = None,
    fp8: bool = False,
    fp8_rule: Literal["reversible", "deepgemm"] = "reversible",
    shard_size: int = DEFAULT_SHARD,
    shards_as: str | Path | None = None,
    workers: int = 2,
    resume: bool = False,
    model: ModelConfig | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> Report:
    """Turns a Megatron checkpoint, imported or trained, into a Hugging Face folder.

    Args:
        checkpoint: a checkpoint folder (the iteration its tracker names), an iteration's folder, or
            a run's; only read. Optimizer state is passed over.
        hf_dir: a new folder.
        dtype: type of the weights; None keeps each tensor's own, kept FP8 becoming BF16. The
            router bias keeps its type always.
        fp8: write the linear weights as DeepSeek's FP8. Of an FP8 import these are the same
            weights and the same bytes as there; otherwise all, quantised in 128×128 blocks.
        fp8_rule: how those get their scales: so that quantising again changes nothing, or as
            DeepGEMM does (see `fp8.quantize`).
        shard_size: bytes of a safetensors file.
        shards_as: a Hugging Face folder of the same model, whose files the tensors are divided into
            instead; those that hold the same tensors in the same types come out the same bytes.
        workers: threads.
        resume: continue an unfinished export into the same folder.
        model: instead of the checkpoint's own `model.yaml`.
        progress: called now and then with (source bytes done, source bytes in all), first with
            those that an earlier run has done.
        announce: called before anything is written, with what will be.

    Raises:
        UserError: as `import_hf`.
    """
    began = time.monotonic()
    require_known(dtype, tuple(CAST))
    if fp8_rule not in FP8_RULES:
        raise UserError(f"no FP8 rule is called '{fp8_rule}'; choose from {', '.join(FP8_RULES)}.")
    if fp8_rule != "reversible" and not fp8:
        raise UserError(
            f"--fp8-rule {fp8_rule} is of weights that --fp8 writes: add --fp8, or leave it out."
        )
    root = Path(hf_dir)
    absent.refuse_no_folder(Path(checkpoint), "a checkpoint")
    source = open_weights(weights_at(checkpoint), model=model)
    if not isinstance(source, DistWeights):
        raise UserError(
            f"{checkpoint} is a Hugging Face folder, not a Megatron checkpoint: dsv3 import "
            f"{shlex.quote(str(checkpoint))} CHECKPOINT is the way from there."
        )
    _require_apart(source.root, root)
    like = None
    if shards_as is not None:
        like = Sharding.of(Path(shards_as))
        _require_apart(like.folder, root)
    layout = HFLayout(export_tensors(source, dtype, fp8), shard_size, like)
    jobs = export_jobs(source, layout.targets, fp8_rule)
    _require_consumed(source, jobs, {entry.name for entry in source.entries})
    trained_on.refuse_replaced_tokenizer(source.root)
    tokenizer = inside(source.root, TOKENIZER)
    config = _config(source, tokenizer, layout.targets, fp8)

    options = {"dtype": dtype, "fp8": fp8, "shard_size": shard_size}
    rule = None if fp8_rule == "reversible" else fp8_rule
    if rule is not None:
        options["fp8_rule"] = rule  # a header of 0.1 has no such key
    options["shards_as"] = None if like is None else str(like.folder.resolve())
    header = header_of("export", source, **options)
    with sole_writer(root):
        kept = None
        is_done = resume and was_complete(root, header, workers, progress)
        if not is_done:
            refuse_taken(root, header, resume=resume)
            before = written_before(root, header, resume=resume)
            _announce(announce, jobs, layout.files, root, before)
            folder = TargetFolder(root, root, layout.files)
            try:
                if resume:
                    with as_sentence(root):
                        layout.recall(root)
                done = folder.begin(header, resume=resume)
                for part, head in layout.headers.items():
                    folder.put(part, head, 0)
                checksums = folder.write(jobs, done, workers, progress or _silent)
                kept = folder.kept
                folder.sync()
            finally:
                folder.close()
            with as_sentence(root):
                replace_file(root / CONFIG, _written(config, source))
                for name, path in files_of(tokenizer, CARRIED).items():
                    replace_file(root / name, path.read_bytes())
                manifest.write(root, header, source, layout.targets.values(), checksums)
                layout.publish(root)
                folder.complete()
    report = _report(source, jobs, layout.targets.values(), began, kept)
    own_scales = any(name.endswith(SCALE) for name in source.stored)
    return replace(report, notes=notes_on_export(root, own_scales=own_scales, fp8_rule=rule))


def _config(
    source: DistWeights, tokenizer: Path, targets: dict[str, Target], fp8: bool
) -> dict[str, Any]:
    """The `config.json` of an export.

    Its token ids are those of the tokenizer that goes with it, whatever the import came with.
    """
    dtype = str(targets[EMBEDDING].dtype).removeprefix("torch.")
    ids = token_ids(tokenizer)
    if source.config is None:
        return new_config(source.model, dtype, fp8, ids)
    config = exported_config(source.config, source.model, dtype, fp8)
    if is_another(tokenizer, manifest_file.read(source.root)):
        config |= dict.fromkeys(TOKEN_IDS & config.keys()) | ids
    return config


def _written(config: dict[str, Any], source: DistWeights) -> bytes:
    """A `config.json` as text: the source's own bytes where it says the same."""
    if config == source.config:
        return inside(source.root, HF_CONFIG).read_bytes()
    return json.dumps(config, indent=2).encode()


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


def _announce(
    announce: Announce | None,
    jobs: list[Job],
    files: dict[str, int],
    root: Path,
    before: Checksums,
) -> None:
    if announce is not None:
        reads, writes = sum(job.read_bytes for job in jobs), sum(files.values())
        kept = kept_of(jobs, before)
        announce(Ahead(reads, writes, free_bytes(root), len(files), kept))


def _report(
    source: Weights,
    jobs: list[Job],
    targets: Iterable[Target],
    began: float,
    kept: Kept | None,
) -> Report:
    """Args: kept: by an earlier run; None: all, which was complete."""
    targets = list(targets)
    return Report(
        tensors=len(targets),
        source_bytes=sum(job.read_bytes for job in jobs),
        target_bytes=sum(target.nbytes for target in targets),
        seconds=time.monotonic() - began,
        was_complete=kept is None,
        source_tensors=len(source.stored),
        copies=_copies(source, {target.name for target in targets}),
        scales=sum(target.name.endswith(SCALE) for target in targets),
        fp8=sum(target.dtype == E4M3 for target in targets),
        kept=kept or NOTHING,
    )


def _copies(source: Weights, written: set[str]) -> int:
    """Copies of other tensors that are in the source, or only in what was written."""
    copies = {entry.name for entry in source.entries if entry.copy_of}
    if isinstance(source, HFWeights):
        return len(copies & source.stored.keys())
    return len(copies & written)


def _silent(done: int, total: int) -> None:
    pass
