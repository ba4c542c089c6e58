"""What CUDA's allocator and NCCL read in the environment, once each, when they start. No torch.

Whatever the user, a launcher or a cluster's image has set stays as it is.
"""

from collections.abc import Mapping
from pathlib import Path

_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Of PyTorch's allocator; it takes either name, upstream looks at the first alone."""

_DUMPS = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""Where NCCL's flight recorder goes: what a file's name begins with, the rank follows."""

_ENTRIES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
"""How many of the last collectives and messages a rank remembers."""


def device_environment(environment: Mapping[str, str], dumps: Path) -> dict[str, str]:
    """The variables to add before the first tensor is on a GPU.

    * Segments of the allocator grow. A rank's experts get another number of tokens in every
      micro-batch, and blocks of a fixed size that fit none of them add up to gigabytes.
    * When a collective or a message times out, every rank writes what it did last and what it was
      waiting for. As many entries as upstream's own default (`--flight-recorder-…`).

    Args:
        environment: the process's.
        dumps: folder for what the flight recorder writes; it need not be there yet.
    """
    wanted = {
        _ALLOCATOR: "expandable_segments:True",
        _DUMPS: str(dumps.absolute() / "rank_"),
        _ENTRIES: "2000",
        ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
    }
    return {
        names[0]: value
        for names, value in wanted.items()
        if not any(name in environment for name in names)
    }
