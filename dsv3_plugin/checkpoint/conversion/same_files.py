"""Are two folders of weights the same files, byte for byte? Whatever is in them.

`verify` compares tensors, wherever they lie. Here a file is compared with the file of its name: for
whoever publishes a folder, or mirrors one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.checkpoint import absent, tracker
from dsv3_plugin.checkpoint.conversion.manifest_file import MANIFEST
from dsv3_plugin.checkpoint.conversion.stream import BLOCK_BYTES, Progress
from dsv3_plugin.checkpoint.conversion.verify import Difference
from dsv3_plugin.checkpoint.conversion.workers import worker_threads
from dsv3_plugin.checkpoint.formats.hf_headers import CONFIG
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside
from dsv3_plugin.files.run_folder import is_checkpoint
from dsv3_plugin.recipe.places import weights_at


@dataclass(frozen=True)
class FileComparison:
    """What a comparison of files found.

    Attributes:
        equal: files that are the same.
        differences: files of both that are not, and files of weights that one lacks.
        only: other files that one folder has, and the other lacks.
        passed_over: the name of a conversion's manifest, where there is one.
    """

    equal: int
    differences: list[Difference]
    only: list[str]
    passed_over: str | None = None


def compare_files(
    a: str | Path,
    b: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
    announce: Callable[[int], None] | None = None,
) -> FileComparison:
    """Compare the files of two folders.

    What a conversion writes about itself (`manifest.json`: of equal files it may say that they were
    made from others) and hidden files are passed over.

    Args:
        a, b: the folders; only read.
        workers: threads.
        progress: called with (bytes of `a` compared, bytes in all).
        announce: called before any file is read, with the bytes of both folders that will be.

    Raises:
        UserError: one is no folder, or not finished, or a link leads out of it; one is a Hugging
            Face folder and the other a checkpoint, which have no files in common.
    """
    _require_one_form(Path(a), Path(b))
    left, right = _files(Path(a)), _files(Path(b))
    common = [name for name in left if name in right]
    differences, only = [], []
    for name in [*left, *right]:
        if name in left and name in right:
            continue
        where = a if name in left else b
        if name.endswith((".safetensors", ".distcp", ".index.json")):
            differences.append(Difference(name, f"only in {where}"))
        else:
            only.append(f"{name} in {where}")
    sizes = {name: left[name].stat().st_size for name in common}
    if announce:  # files of unlike sizes differ, unread
        alike = (n for name, n in sizes.items() if right[name].stat().st_size == n)
        announce(2 * sum(alike))
    equal, done, total = 0, 0, sum(sizes.values())
    if progress:
        progress(0, total)
    with worker_threads(workers) as pool:
        found = pool.map(lambda name: _differs(left[name], right[name]), common)
        for name, what in zip(common, found, strict=True):
            if what:
                differences.append(Difference(name, what))
            equal += not what
            done += sizes[name]
            if progress:
                progress(done, total)
    manifests = [*Path(a).rglob(MANIFEST), *Path(b).rglob(MANIFEST)]
    return FileComparison(equal, differences, only, MANIFEST if manifests else None)


def _require_one_form(a: Path, b: Path) -> None:
    if is_checkpoint(weights_at(a)) == is_checkpoint(weights_at(b)):
        return
    hf, other = (b, a) if is_checkpoint(weights_at(a)) else (a, b)
    if (hf / CONFIG).is_file():
        raise UserError(
            f"{hf} is a Hugging Face folder and {other} a checkpoint, which have no file in "
            "common: leave --bytes out, and their tensors are compared, bit for bit; or export "
            "the checkpoint and compare that folder."
        )


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder and those below it, by name, that are compared."""
    absent.refuse_no_folder(folder)
    tracker.refuse_unfinished(folder)
    return dict(_below(folder))


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.name != MANIFEST and not any(p[0] == "." for p in name.parts):
            yield name.as_posix(), inside(folder, name.as_posix())


def _differs(mine: Path, other: Path) -> str:
    """What is not the same of two files, or nothing."""
    a, b = mine.stat().st_size, other.stat().st_size
    if a != b:
        return f"{a:,} bytes and {b:,}"
    position = 0
    with mine.open("rb") as one, other.open("rb") as two:
        while block := one.read(BLOCK_BYTES):
            against = two.read(BLOCK_BYTES)
            if block != against:
                pairs = enumerate(zip(block, against, strict=True))
                return (
                    f"differ from byte {position + next(i for i, (x, y) in pairs if x != y):,} on"
                )
            position += len(block)
    return ""
