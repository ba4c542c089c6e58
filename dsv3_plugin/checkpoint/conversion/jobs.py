"""What each tensor becomes, and the job that makes it.

An import writes what the source has, FP8 weights together with their scales, and holds the MTP
layer's copies of embedding and head against the originals. An export gives back what the model's
Hugging Face checkpoint has, as the chosen types want it.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from dsv3_plugin.checkpoint.conversion import manifest, recode
from dsv3_plugin.checkpoint.conversion.config_json import wants_power_of_two
from dsv3_plugin.checkpoint.conversion.job import Job
from dsv3_plugin.checkpoint.conversion.journal import Checksums
from dsv3_plugin.checkpoint.conversion.weights import E4M3, DistWeights, HFWeights
from dsv3_plugin.checkpoint.formats.target import Target
from dsv3_plugin.checkpoint.names import HEAD, SCALE, Entry
from dsv3_plugin.errors import UserError

CAST = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Types that weights can be given, by the names that users give them."""


def import_regions(source: HFWeights, dtype: str | None) -> list[tuple[Entry, torch.dtype]]:
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


def import_jobs(source: HFWeights, targets: Iterable[Target]) -> list[Job]:
    """What fills an import's targets, and what checks the MTP layer's copies."""
    copies = [entry for entry in source.entries if entry.copy_of and entry.name in source.stored]
    return [
        *(_import_job(source, target) for target in targets),
        *(_check_copy(source, entry) for entry in copies),
    ]


def export_tensors(
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


def export_jobs(source: DistWeights, targets: dict[str, Target], fp8_rule: str) -> list[Job]:
    """What fills an export's targets."""
    known = manifest.recorded(source)
    quantised = partial(
        recode.quantised, source, rule=fp8_rule, power_of_two=wants_power_of_two(source.config)
    )
    return [
        job
        for entry in source.entries
        for job in _export_jobs(source, entry, targets, known, quantised)
    ]


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
    return Job((target,), partial(recode.finite, source, name, blocks), (name,), stored.nbytes)


def _check_copy(source: HFWeights, entry: Entry) -> Job:
    """A job that holds the MTP layer's copy of a tensor against the original."""
    name, original = entry.name, entry.copy_of
    stored = source.stored[name]

    def compare() -> recode.Blocks:
        if not recode.same_tensor(source, name, original):
            why = (
                "the head is the embedding where config.json says tie_word_embeddings; if it is "
                "not, say false there"
                if name == HEAD
                else "the multi-token prediction layer shares it with the main model"
            )
            raise UserError(f"{name} in {source.file_of(name)} differs from {original}: {why}.")
        yield ()

    return Job((), compare, (name,), stored.nbytes)


def _export_jobs(
    source: DistWeights,
    entry: Entry,
    targets: dict[str, Target],
    recorded: dict[str, str],
    quantised: Callable[[str], recode.Blocks],
) -> Iterator[Job]:
    """Jobs of one entry.

    Args:
        recorded: checksums of the source's tensors, as far as they are known.
        quantised: a weight that was never FP8, in FP8 and with its scales.
    """
    name, scale, check = entry.name, entry.name + SCALE, None
    target, stored = targets[name], source.stored[name]
    if target.dtype == E4M3:
        if scale not in source.stored:
            blocks = partial(quantised, name)
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
    finite = partial(recode.finite, source, name, blocks)
    yield Job((target,), finite, (name,), stored.nbytes, check)


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
                f"{name} in {source.file_of(name)} is damaged: its checksum is "
                f"not the one in {source.root / manifest.MANIFEST}, which the import wrote: copy "
                f"{source.root} again, or import it again; if the weights were changed on purpose, "
                f"remove {manifest.MANIFEST}."
            )

    return check
