"""The CUDA streams that a rank's chunks compute on, where computations overlap in pairs.

The two sides of a pair (`distributed.overlap`) share a GPU. On one stream they would stall
together: NCCL's `work.wait()` holds up the stream, so what the other side was given afterwards
would wait for a collective that it does not need. So **each chunk of a rank has a stream of its
own**, for all that it computes: forward, backward and owed weight gradients. A pair of two chunks,
as DualPipe forms it, is on two streams. (A pair of a chunk with itself, which a found schedule may
hold, shares one: it overlaps as far as one stream allows.)

By chunk and not by side, because autograd runs the backward of an operation on the stream of its
forward, and because the allocator gives a block back to the stream it was made on. What a
micro-batch leaves behind in a chunk is so made, used and freed on one stream, in its order. Memory
freed on one stream does not serve another; but the chunks of DualPipe and DualPipeV are fullest at
the same time, so two pools hold no more than one would.

Between streams there are two waits (`overlap.beside`). A computation, or both of a pair, begins
when the stream of the executor has got to it: messages have arrived, whatever ran before has ended.
The stream of the executor goes on when they have ended. Hence:

* Two streams compute at the same time only inside one pair, and then on different chunks: other
  weights, other activations, other gradients. What both touch is ordered by the pair's begin or end
  (weights after the optimizer, an output that the next chunk takes, counters and losses).
* What a pair reads of before it (activation and gradient that arrived) is held by the executor
  until the pair has ended, and its memory is given away on a stream that has waited for that.
* `work.wait()` holds up the side that calls it. The other is not behind it in any queue.
* AccumulateGrad runs where it was made, on the stream of the executor, when a side has computed the
  gradient; autograd orders the two, and lets that side alone wait at its end.
* A matrix product has the workspace of its stream: torch's by its handle, Transformer Engine's by
  `upstream.cublas_workspace`. (TE's grouped products run on streams of TE's, in order of launch.)

Schedules without pairs compute on the stream of the executor, and so does a CPU.
"""

from collections.abc import Sequence

import torch

from dsv3_plugin.schedules.actions import Overlap
from dsv3_plugin.schedules.messages import Step


class ChunkStreams:
    """The streams of one rank's chunks, made when a schedule with pairs first comes.

    They stay in use from then on, in evaluations too, whose tensors would else need a third pool.
    """

    def __init__(self) -> None:
        self._made: list[torch.cuda.Stream] = []

    def for_steps(self, steps: Sequence[Step], chunks: int) -> Sequence[torch.cuda.Stream | None]:
        """By chunk, the stream it computes on; None is the one of the executor.

        Args:
            steps: of this rank.
            chunks: how many it has.
        """
        pairs = any(isinstance(step.action, Overlap) for step in steps)
        if pairs and chunks > 1 and not self._made and torch.cuda.is_available():
            self._made = [torch.cuda.Stream() for _ in range(chunks)]
            # AccumulateGrad has another stream than the chunk on purpose.
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        return self._made or [None] * chunks
