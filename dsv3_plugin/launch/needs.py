"""What a job needs that can be looked at from where it is submitted: data, tokenizer, environment.

A login node does not see all that compute nodes see: a file system of theirs, an image. What lies
in the folder a job is submitted from, or on its file system, is theirs too: that is what is said to
be shared. So what is missing there is certainly missing; of anything else a sentence can only say
that it was not seen. No torch here.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from dsv3_plugin.data.dataset_folder import find_dataset
from dsv3_plugin.data.tokenizer_folder import VOCABULARY_FILES, files_of, tokenizer_at
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.launch.job_values import Place
from dsv3_plugin.launch.partitions import no_such_partition
from dsv3_plugin.planner.cluster_launch import Launch
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.common import HELD_OUT_SETS
from dsv3_plugin.recipe.continued import PARENT
from dsv3_plugin.recipe.functions import refuse_no_dotted_path
from dsv3_plugin.recipe.places import weights_at
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rollouts.judging import refuse_missing
from dsv3_plugin.training.parent import refuse_unfinished

Seen = Literal["there", "missing", "unseen", "not mounted"]

_PATIENCE_S = 60
"""For the interpreter of an environment, on a file system that is asleep."""
_NO_PACKAGE = 42
_LOOKS = (
    "import importlib.util, sys; "
    f"sys.exit({_NO_PACKAGE} if importlib.util.find_spec('dsv3_plugin') is None else 0)"
)


@dataclass(frozen=True)
class Lack:
    """Something that a job needs and that was not found.

    Attributes:
        sentence: what, and the way out.
        certain: whether the job cannot have it: it would fail.
    """

    sentence: str
    certain: bool


@dataclass(frozen=True)
class View:
    """What ranks see of this machine's files, as far as it is known.

    Attributes:
        here: the folder that the job is submitted from, which all nodes share.
        mounts: `FROM:TO` each, what an image sees; None: there is no image.
        whole: whether ranks run on this machine, and see what is seen here.
    """

    here: Path
    mounts: Sequence[str] | None = None
    whole: bool = False

    def of(self, path: Path) -> Seen:
        """Whether ranks will find a path."""
        path = self.here / path
        if self.mounts is None:
            return self._on_nodes(path)
        for mount in self.mounts:
            source, target = [*mount.split(":"), mount][:2]
            if path.is_relative_to(target):
                return self._on_nodes(Path(source) / path.relative_to(target))
        return "not mounted" if path.exists() else "unseen"

    def _on_nodes(self, path: Path) -> Seen:
        real = Path(os.path.realpath(path))
        try:
            real.stat()
        except (FileNotFoundError, NotADirectoryError):
            return "missing" if self._is_shared(real) else "unseen"
        except OSError:
            return "unseen"
        return "there"

    def _is_shared(self, path: Path) -> bool:
        """Whether what is not here is not on the nodes either.

        On the root's file system nodes have other folders, and mount others: there it takes the
        same folder of the root.
        """
        here = Path(os.path.realpath(self.here))
        if self.whole or path.is_relative_to(here):
            return True
        nearest = next(parent for parent in path.parents if parent.exists())
        device = nearest.stat().st_dev
        of_the_root = Path("/").stat().st_dev == device
        return device == here.stat().st_dev and (
            not of_the_root or nearest.parts[1:2] == here.parts[1:2] != ()
        )


def missing_texts(recipe: Recipe) -> list[str]:
    """A sentence for each corpus, tokenizer or template that a run on this machine would not find.

    What `data.made_by` makes is not missing.
    """
    view = View(Path.cwd(), whole=True)
    lacks = [*_template(recipe, view)]
    if not recipe.data.made_by:
        lacks = [*_data(recipe, view), *_tokenizer(recipe, view), *lacks]
    return [lack.sentence for lack in lacks if lack.certain]


def refuse_missing_texts(recipe: Recipe) -> None:
    """Raise UserError for the first of them."""
    for sentence in missing_texts(recipe):
        raise UserError(f"{recipe.name}: {sentence}.")


def refuse_missing_rewards(recipe: Recipe) -> None:
    """Raise UserError for a reward that is not where ranks, which run here, look for it."""
    if not isinstance(recipe, Rl):
        return
    for name, reward in recipe.rewards.items():
        if "." in name and reward.address is None:
            refuse_no_dotted_path(name, f"The reward '{name}'")
            refuse_no_package(f"rewards: {name}", name, "reward")
    with looking_here():
        refuse_missing(recipe.rewards)


def refuse_no_package(said: str, path: str, other: str) -> None:
    """Raise UserError for a function whose package is neither in this folder nor installed.

    Args:
        said: the key and its value, for the sentence.
        path: of the function, by dots.
        other: what may be named instead.
    """
    package = path.partition(".")[0]
    if (
        PathFinder.find_spec(package, [str(Path.cwd()), *sys.path]) is None
        and package not in sys.builtin_module_names
    ):
        raise UserError(
            f"{said} is a function in the Python package {package}, which is neither "
            f"in this folder nor installed: put it there, or name another {other}."
        )


@contextlib.contextmanager
def looking_here() -> Iterator[None]:
    """Import from this folder too, as ranks do."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def lacking(
    recipe: Recipe,
    launch: Launch,
    place: Place,
    here: Path,
    *,
    waits: bool,
    by_slurm: bool = True,
) -> Iterator[Lack]:
    """What a job of a recipe would not find.

    Args:
        recipe: the run.
        launch: how jobs are started on the cluster.
        place: where its commands run.
        here: the folder that it is submitted from.
        waits: whether it begins after another job, which may make what is missing.
        by_slurm: whether it could.
    """
    view = View(here, None if launch.container is None else place.mounts)
    for lack in (
        *(*_data(recipe, view), *_tokenizer(recipe, view), *_template(recipe, view)),
        *_parent(recipe, waits, by_slurm),
    ):
        yield Lack(lack.sentence, lack.certain and not waits)
    yield from _environment(place, view)
    if by_slurm and (sentence := no_such_partition(launch.partition)) is not None:
        yield Lack(sentence, certain=True)


def _data(recipe: Recipe, view: View) -> Iterator[Lack]:
    """The corpus; and whether it is encoded, which is work for one rank while all others wait."""
    data = recipe.data
    prepared = all(find_dataset(one) for one in corpora.folders(recipe.data_folder, data.corpus))
    if prepared and recipe.run_folder.steps_saved():
        return  # a run goes on with the data that it has, without a look at the corpus
    made = set(unmade(recipe))
    lacks = []
    for key, name, folder in _texts(recipe):
        for path in _files(name):
            if path in made:
                sentence = (
                    f"{key}: {path} is not made yet: a rank of the job makes it, by "
                    f"{data.made_by}; dsv3 data prepare does so before"
                )
                lacks.append(Lack(sentence, certain=False))
            elif (lack := _of(key, path, view)) and not _is_built_from(folder, name):
                lacks.append(lack)
    yield from lacks
    if not lacks and not prepared and not _is_small(recipe):
        yield Lack(
            f"the data of {recipe.name} are not prepared in {recipe.data_folder}: a rank of the "
            "job encodes them, while all others wait; dsv3 data prepare does so before",
            certain=False,
        )


def _template(recipe: Recipe, view: View) -> Iterator[Lack]:
    """The template by which conversations are written, which no `data.made_by` makes."""
    template = recipe.data.template
    if template is not None and (lack := _of("data.template", named(template), view)) is not None:
        yield lack


def unmade(recipe: Recipe) -> list[Path]:
    """The files that `data.made_by` makes, and that are not there."""
    if recipe.data.made_by is None:
        return []
    names = [name for one in corpora.members(recipe.data.corpus) for name in one.names]
    files = [named(name) for name in names if name != corpora.STDLIB]
    files += map(named, recipe.data.held_out_sets.values())
    return [file for file in files if not file.exists()]


def read_by(recipe: Recipe) -> Iterator[Path]:
    """All that data are read from, a tokenizer and a template, as far as paths name them."""
    for _, name, _ in _texts(recipe):
        yield from _files(name)
    tokenizer, template = recipe.data.tokenizer, recipe.data.template
    if isinstance(tokenizer, str) and tokenizer != PARENT:
        yield named(tokenizer)
    if template is not None:
        yield named(template)


def _texts(recipe: Recipe) -> Iterator[tuple[str, str, Path]]:
    """Key and name of all that data are read from, and the folder of what is built from it."""
    data, place = recipe.data, recipe.data_folder
    drawn = [member for _, member in corpora.drawn_from(data.corpus)]
    for member, folder in zip(drawn, corpora.folders(place, data.corpus), strict=True):
        names = (name for name in member.names if name != corpora.STDLIB)
        yield from (("data.corpus", name, folder) for name in names)
    for name, path in data.held_out_sets.items():
        yield f"data.held_out_sets.{name}", str(path), place / HELD_OUT_SETS / name


def _is_built_from(folder: Path, name: str) -> bool:
    """Whether there is a dataset that a text was encoded into, which is not asked for any more."""
    if corpora.indexed_prefix(name) is not None or (dataset := find_dataset(folder)) is None:
        return False
    return any(corpora.same(name, other) for other in dataset.manifest.corpus.named)


def _files(name: str) -> list[Path]:
    """What has to be there of a corpus: itself, or the two files of an encoded one."""
    prefix = corpora.indexed_prefix(name)
    if prefix is None:
        return [named(name)]
    return [prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx")]


def _is_small(recipe: Recipe) -> bool:
    """Whether there is nothing to be encoded that takes long: no texts of anybody's own."""
    return not any(
        corpora.indexed_prefix(name) is None
        for key, name, _ in _texts(recipe)
        if key == "data.corpus"
    )


def _tokenizer(recipe: Recipe, view: View) -> Iterator[Lack]:
    choice = recipe.data.tokenizer
    if not isinstance(choice, str) or choice == PARENT:
        return
    folder = named(choice)
    if (lack := _of("data.tokenizer", folder, view)) is None:
        if not files_of(tokenizer_at(folder), VOCABULARY_FILES):
            yield Lack(
                f"data.tokenizer: {choice} has no vocabulary ({', '.join(VOCABULARY_FILES[:3])}): "
                "name the folder of a tokenizer",
                certain=True,
            )
    elif re.fullmatch(r"[^./~][^/]*/[^/]+", choice):  # a name on the hub
        yield Lack(
            f"data.tokenizer: {choice} is no folder here, and is looked for on Hugging Face's hub: "
            "on nodes without a network it has to be downloaded before",
            certain=False,
        )
    else:
        yield lack


def _parent(recipe: Recipe, waits: bool, by_slurm: bool) -> Iterator[Lack]:
    """What a stage begins with, which may be made while the job is in the queue."""
    parent = getattr(recipe, "from_", None)
    if parent is None or waits or recipe.run_folder.steps_saved():
        return
    if not weights_at(parent).exists():
        wait = ": --after RUN has the job wait for that of a run" if by_slurm else ""
        what = "job" if by_slurm else "run"
        yield Lack(
            f"from: {parent} is not there yet, and has to be when the {what} begins{wait}",
            certain=False,
        )
        return
    try:
        refuse_unfinished(recipe)
    except UserError as error:
        yield Lack(str(error).removesuffix("."), certain=True)


def _environment(place: Place, view: View) -> Iterator[Lack]:
    if place.venv is None:
        return
    if (view.here / place.venv).is_file():
        yield Lack(
            f"launch.venv: {place.venv} is a file: name the folder of an environment, in which "
            "bin/activate lies",
            certain=True,
        )
        return
    for name in ("bin/activate", "bin/python"):
        lack = _of("launch.venv", Path(place.venv, name), view)
        if lack is not None:
            yield lack
            return
    command = [place.python, "-c", _LOOKS]
    try:
        code = subprocess.run(
            command, cwd=view.here, capture_output=True, timeout=_PATIENCE_S, check=False
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        why = getattr(error, "strerror", None) or f"no answer in {_PATIENCE_S} s"
        yield Lack(
            f"launch.venv: {place.python} does not run here ({why}), so it is not known whether "
            "dsv3 is installed in it",
            certain=False,
        )
        return
    if code == _NO_PACKAGE:
        yield Lack(
            f"launch.venv: dsv3 is not installed in {place.venv}: {place.venv}/bin/pip install it "
            "there, or name another environment in the cluster's file",
            certain=True,
        )


def _of(what: str, path: Path, view: View) -> Lack | None:
    """What is to be said of a path, None where ranks will find it."""
    match view.of(path):
        case "there":
            return None
        case "missing":
            where = "" if path.is_absolute() else f" in {view.here}"
            return Lack(
                f"{what}: {path} does not exist{where}: put it there, or name another", certain=True
            )
        case "not mounted":
            return Lack(
                f"{what}: {path} is here, and the image sees it only if it holds it itself: add it "
                "to launch.container.mounts",
                certain=False,
            )
        case "unseen":
            return Lack(f"{what}: {path} cannot be seen from here; the nodes need it", False)
