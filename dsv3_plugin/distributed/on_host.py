"""What a collective brings, read by a host that waits for that and for nothing else.

`tensor.cpu()` waits for all that its stream was given before it, and in an overlapped pair that is
much: the counts of one side would be known when the other side has computed. So the copy runs on a
stream that does nothing but copy. That stream waits for the collective and copies (with
`non_blocking`, to memory that torch pins; a copy to other memory blocks the host), and an event
behind the copy tells the host. (Upstream's all-to-all dispatcher has the same, `cuda_dtoh_stream`.)
"""

import functools

import torch

from dsv3_plugin.distributed.overlap import Work


class OnHost:
    """A tensor on its way to the host; on a CPU it is there when the collective is over.

    Made before the other side of a pair computes, and waited for afterwards (`overlap.wait`).

    Args:
        arriving: where the collective puts what it brings. Kept until then: its memory would else
            be given to the next tensor while it is being copied.
        work: the collective.

    Attributes:
        tensor: what came, to be read after `wait`.
    """

    def __init__(self, arriving: torch.Tensor, work: Work) -> None:
        self._arriving, self._work = arriving, work
        self.tensor = arriving
        if torch.cuda.is_available():
            copies = _stream_of_copies(torch.cuda.current_device())
            with torch.cuda.stream(copies):
                work.wait()
                self.tensor = arriving.to("cpu", non_blocking=True)
            self._copied = copies.record_event()

    def wait(self) -> None:
        """Hold the host until `tensor` is there."""
        if torch.cuda.is_available():
            self._copied.synchronize()
        else:
            self._work.wait()


@functools.cache
def _stream_of_copies(device: int) -> torch.cuda.Stream:
    """The stream of a device that does nothing but copy to the host."""
    return torch.cuda.Stream(device)
