"""The files of `dsv3 logits`: token ids in, logits out, both NumPy's .npy."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as


def read_tokens(path: Path, *, vocab_size: int, longest: int) -> np.ndarray:
    """Token ids [b, s] of an .npy file.

    Args:
        path: the file.
        vocab_size: ids must be below it.
        longest: sequences must not be longer.

    Raises:
        UserError: there is no such file, or it does not hold an int64 array [b, s] of such ids.
    """
    try:
        # Mapped, so that a shape that lies costs nothing; a pipe has to be read.
        tokens = np.load(path, "r" if path.is_file() else None, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
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
        raise UserError(f"{path} is an archive of arrays; --tokens takes a single .npy array.")
    if tokens.dtype != np.int64 or tokens.ndim != 2:
        raise UserError(
            f"{path} holds {tokens.dtype} {list(tokens.shape)}; token ids are int64 [b, s]."
        )
    if tokens.size == 0:
        raise UserError(f"{path} holds no tokens: its shape is {list(tokens.shape)}.")
    if tokens.shape[1] > longest:
        raise UserError(
            f"{path} holds sequences of {tokens.shape[1]} tokens; the model takes {longest}."
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise UserError(
            f"{path} holds token ids from {tokens.min()} to {tokens.max()}; "
            f"the model knows 0 to {vocab_size - 1}."
        )
    return tokens


def require_place(path: Path) -> None:
    """Look whether a file can come to be at `path`, before the work that it is to hold.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file, such as {path / 'logits.npy'}.")
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
