"""The states of Transformer Engine's layers: pickles inside of what a checkpoint stores as bytes.

Transformer Engine unpickles them itself when a layer's state is loaded, whatever they name. So they
are looked at before it gets them: here, where a checkpoint is opened, and when it is loaded. No
torch.
"""

from typing import Any

from dsv3_plugin.checkpoint.formats.containers import Bytes, Saved, bytes_of, open_saved
from dsv3_plugin.checkpoint.formats.pickles import PickleError, Record, parse
from dsv3_plugin.checkpoint.formats.stored_tensors import is_tensor, stored_tensor
from dsv3_plugin.checkpoint.formats.symbols import BYTES_IO, EXTRA_STATES, OBJECTS


def is_extra_state(key: str) -> bool:
    """Whether a checkpoint keeps the state of a layer of Transformer Engine under a key."""
    return "_extra_state" in key


def check_extra_state(content: Any, saved: Saved, data: Bytes, where: object) -> None:
    """Look at what Transformer Engine would unpickle.

    Args:
        content: what the pickle of the container holds.
        saved, data: the container, and the bytes that hold it.
        where: how a person knows it.

    Raises:
        ForeignSymbolError: it names what could run code.
        PickleError: it is damaged, or no state of a layer.
    """
    for state in content if type(content) is list else [content]:
        if is_tensor(state):
            inside = _bytes(state, saved, data)
            if inside:
                parse(inside, EXTRA_STATES, where)
        elif type(state) is Record and state.symbol == BYTES_IO:
            inside = bytes_of(state.state[0]) if type(state.state) is tuple else b""
            if inside:
                open_saved(inside).content(EXTRA_STATES | OBJECTS, where)
        elif state is not None:
            raise PickleError("not a layer's state")


def _bytes(tensor: Record, saved: Saved, data: Bytes) -> bytes:
    """Those of a tensor of bytes, in a row."""
    stored = stored_tensor(tensor, saved)
    if stored.dtype != "uint8" or stored.stride not in ((1,), ()) or len(stored.sizes) != 1:
        raise PickleError("not a layer's state")
    begin = stored.position + stored.first
    return bytes(data[begin : begin + stored.sizes[0]])
