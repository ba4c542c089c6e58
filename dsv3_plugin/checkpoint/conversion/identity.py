"""What a conversion is of, by which a repeated one is known to be the same."""

from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.checkpoint.conversion import journal, manifest, manifest_file
from dsv3_plugin.checkpoint.conversion.stream import Progress
from dsv3_plugin.checkpoint.conversion.tokenizer_files import CARRIED
from dsv3_plugin.checkpoint.conversion.weights import DistWeights, Weights
from dsv3_plugin.checkpoint.formats.dist_metadata import METADATA
from dsv3_plugin.checkpoint.formats.hf_headers import CONFIG
from dsv3_plugin.checkpoint.tracker import INCOMPLETE
from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.data.tokenizer_folder import VOCABULARY_FILES, digests
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside

_TOKENIZER = "tokenizer_files"


def header_of(kind: str, source: Weights, **options: Any) -> dict[str, Any]:
    """What a conversion is of: a continued one has to be of the same."""
    stored = [(name, str(s.dtype), s.shape, s.file) for name, s in source.stored.items()]
    described = repr((sorted(stored), source.model.model_dump()))
    return {
        "conversion": kind,
        "source": str(source.path.resolve()),
        "source_tensors": f"{crc32(described.encode()):08x}",
        "source_files": _states(source),
        _TOKENIZER: digests(_tokenizer(source), CARRIED),
        **options,
    }


def is_another(tokenizer: Path, written: dict[str, Any]) -> bool:
    """Whether a tokenizer gives tokens other ids than the one that an import came with.

    Args:
        tokenizer: its folder.
        written: what the import wrote into its manifest; nothing where it is not known.
    """
    came_with = written.get(_TOKENIZER)
    if not isinstance(came_with, dict):
        return False
    return digests(tokenizer) != {n: d for n, d in came_with.items() if n in VOCABULARY_FILES}


def was_complete(
    root: Path, header: dict[str, Any], workers: int, progress: Progress | None
) -> bool:
    """Whether this very conversion was finished earlier and all it wrote is still there.

    Raises OtherTargetError if another one was, or if what is there is not what was written.
    """
    finished = manifest_file.read(root)
    if not finished or (root / INCOMPLETE).exists():
        return False
    journal.require_same(root, finished, header)
    if damage := _damage(root, header, workers, progress):
        raise journal.OtherTargetError(
            f"{root} was finished and has been damaged since: {damage}; remove the folder and "
            "convert again."
        )
    return True


def _damage(
    root: Path, header: dict[str, Any], workers: int, progress: Progress | None
) -> str | None:
    """The first thing in which a finished target is not what was written; None: there is none."""
    try:
        differences = manifest.check(root, workers=workers, progress=progress).differences
    except UserError as unreadable:
        return str(unreadable).removesuffix(".")
    for difference in differences:
        return f"{difference.name}: {difference.what}"
    if header["conversion"] == "import" and not tracker.is_complete(root / tracker.RELEASE):
        return f"files of {root / tracker.RELEASE} are missing"
    return None


def _tokenizer(source: Weights) -> Path:
    """The folder of the tokenizer that goes with the weights."""
    if isinstance(source, DistWeights):
        return inside(source.root, TOKENIZER)
    return source.path


def _states(source: Weights) -> dict[str, list[int]]:
    """File of the source → its size and when it was changed (ns): another file has another."""
    if isinstance(source, DistWeights):
        folder, tensors = source.checkpoint.path, source.checkpoint.contents.tensors.values()
        names = {METADATA, *(place.file for t in tensors for _, _, place in t.chunks)}
    else:
        folder, names = source.path, {CONFIG, *(stored.file for stored in source.stored.values())}
    found = {name: (folder / name).stat() for name in sorted(names)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
