"""What people call the types that a conversion writes (`--dtype`)."""

from dsv3_plugin.errors import UserError

KEEP_FP8 = "keep-fp8"

_AS_TORCH = {
    "bfloat16": "bf16",
    "float32": "fp32",
    "torch.bfloat16": "bf16",
    "torch.float32": "fp32",
}
_HALF = ("fp16", "float16", "torch.float16", "half")


def require_known(dtype: str | None, known: tuple[str, ...]) -> None:
    """Raise UserError for a type that weights are not converted into, with the way out.

    Args:
        dtype: as it was asked for; None keeps each tensor's own.
        known: those there are.
    """
    if dtype is None or dtype in known:
        return
    way = f"choose from {', '.join(known)}"
    if dtype.lower() in _AS_TORCH:
        way = f"it is called {_AS_TORCH[dtype.lower()]} here"
    elif dtype.lower() in _HALF:
        way = f"weights in FP16 stay so without --dtype, and no others become FP16; {way}"
    elif dtype.lower().startswith(("fp8", "float8")):
        way = "take keep-fp8" if KEEP_FP8 in known else "--fp8 writes that, without --dtype"
    raise UserError(f"the type '{dtype}' is not known: {way}.")
