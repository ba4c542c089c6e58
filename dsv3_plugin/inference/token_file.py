"""The files of `dsv3 logits`: token ids in, logits out, both NumPy's .npy."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as

_A_FILE = "as numpy.save('tokens.npy', numpy.array([[17, 4]])) writes it"
_FROM_TEXT = (
    "the model's tokenizer makes them of a text, and numpy.save('tokens.npy', numpy.array([ids])) "
    "a file of those"
)
_LONGEST = 200
"""Characters of a path that are told: it may be a whole text."""


def read_tokens(path: Path, *, vocab_size: int, longest: int) -> np.ndarray:
    """Token ids [b, s] of an .npy file.

    Args:
        path: the file.
        vocab_size: ids must be below it.
        longest: sequences must not be longer.

    Raises:
        UserError: there is no such file, or it does not hold an int64 array [b, s] of such ids.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: --tokens takes a file, {_A_FILE}.")
    try:
        # Mapped, so that a shape that lies costs nothing; a pipe has to be read.
        tokens = np.load(path, "r" if path.is_file() else None, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(_not_there(path)) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(_not_there(path)) from None
        raise UserError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}."
        ) from None
    except (
        ValueError,
        EOFError,
        OverflowError,
        MemoryError,
    ):  # NumPy's own words advise to unpickle it
        raise UserError(
            f"{path} holds no whole .npy array of numbers: write it with "
            "numpy.save(FILE, tokens.astype('int64'))."
        ) from None
    if not isinstance(tokens, np.ndarray):
        name = next(iter(tokens.files), "arr_0")
        raise UserError(
            f"{path} is an archive of arrays; --tokens takes a single .npy array: "
            f"numpy.save('tokens.npy', numpy.load({str(path)!r})[{name!r}])."
        )
    if tokens.dtype.kind in "US":
        raise UserError(f"{path} holds text, and --tokens takes token ids: {_FROM_TEXT}.")
    if tokens.dtype != np.int64 or tokens.ndim != 2:
        raise UserError(
            f"{path} holds {tokens.dtype} {list(tokens.shape)}; token ids are int64 [b, s]: "
            f"{_in_that_form(tokens)}."
        )
    if tokens.size == 0:
        raise UserError(
            f"{path} holds no tokens: its shape is {list(tokens.shape)}; save one sequence [1, s] "
            "at least."
        )
    if tokens.shape[1] > longest:
        raise UserError(
            f"{path} holds sequences of {tokens.shape[1]} tokens; the model takes {longest}: save "
            f"tokens[:, :{longest}]."
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise UserError(
            f"{path} holds token ids from {tokens.min()} to {tokens.max()}; "
            f"the model knows 0 to {vocab_size - 1}: take the ids of its own tokenizer."
        )
    return tokens


def _not_there(path: Path) -> str:
    """Of what is no file: it may be what was to be in the file."""
    said = str(path)
    if re.fullmatch(r"[\d\s,\[\]]*\d[\d\s,\[\]]*", said):
        return f"'{said[:_LONGEST]}' is no file: --tokens takes the ids in one, {_A_FILE}."
    if path.suffix == ".npy" or (" " not in said and (path.suffix or path.parent != Path())):
        return f"{said[:_LONGEST]} does not exist: --tokens takes a file, {_A_FILE}."
    return f"'{said[:_LONGEST]}' is no file, and --tokens takes one of token ids: {_FROM_TEXT}."


def _in_that_form(tokens: np.ndarray) -> str:
    """How an array of another form is saved in the right one, where that loses nothing."""
    if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2):
        return f"save {_A_FILE}"
    cast = "" if tokens.dtype == np.int64 else ".astype('int64')"
    return f"save tokens{cast}{'[None]' if tokens.ndim == 1 else ''}"


def require_place(path: Path, tokens: Path) -> None:
    """Look whether logits can come to be at `path`, before the work that they are.

    Args:
        path: their file.
        tokens: the file of token ids, which is only read.

    Raises:
        UserError: they cannot.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file, such as {path / 'logits.npy'}.")
    if path.resolve() == tokens.resolve() or (
        path.exists() and tokens.exists() and path.samefile(tokens)
    ):
        raise UserError(
            f"{path} is the file of --tokens, and --out would write over it: name another."
        )
    if path.suffix.lower() != ".npy":
        raise UserError(f"--out writes .npy files; {path} does not end so.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: its folder is read-only for you.")


@contextlib.contextmanager
def new_array(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A float32 array on disk that becomes `path` when the block ends well, and else nothing.

    Raises:
        UserError: the folder does not exist or cannot be written, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        with write_errors_as(lambda reason: f"{path} cannot be written: {reason}."):
            beside = stack.enter_context(whole_file(path))
            array = np.lib.format.open_memmap(beside, "w+", dtype=np.float32, shape=shape)
            with beside.open("r+b") as file:  # now, or a full disk would kill the process
                os.posix_fallocate(file.fileno(), 0, beside.stat().st_size)
        yield array
        array.flush()
