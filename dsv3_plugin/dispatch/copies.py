"""Rows that go to several destinations: copied on the way out, summed on the way back."""

import torch
import torch.nn.functional as F

from dsv3_plugin.dispatch.plan import rows_by_destination


class Copies:
    """Which row goes where.

    Args:
        needs: `[R, D]` bool: row r goes to destination d.
        total: number of copies, the number of True in `needs`.

    Attributes:
        sources: `[total]` the row of each copy; copies are grouped by destination.
    """

    def __init__(self, needs: torch.Tensor, total: int) -> None:
        self._rows, self._destinations = needs.shape
        self._total = total
        destination, self.sources = rows_by_destination(needs, total)
        self._slots = self.sources * self._destinations + destination
        # For the sums: the copies of row r are _by_row[_bounds[r] : _bounds[r + 1]].
        self._by_row = self.sources.argsort(stable=True)
        self._bounds = F.pad(needs.sum(1).cumsum(0), (1, 0))

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """`[R, h]` → `[total, h]`: every copy."""
        return rows.index_select(0, self.sources)

    def sum(self, copies: torch.Tensor) -> torch.Tensor:
        """`[total, h]` → `[R, h]`: the copies of each row, added in FP32 and rounded once.

        An embedding bag: unlike `index_add_` it needs no atomic additions on a GPU, so the result
        is the same every time, and no FP32 copy of its input; on the CPU it is several times as
        fast.
        """
        if not self._rows or not self._total:
            return copies.new_zeros(self._rows, copies.shape[1])
        return F.embedding_bag(
            self._by_row, copies, self._bounds, mode="sum", include_last_offset=True
        )

    def take_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """`[R, D·n]`, a part per destination → `[total, n]`: the part that goes with each copy."""
        parts = slots.reshape(self._rows * self._destinations, slots.shape[1] // self._destinations)
        return parts.index_select(0, self._slots)

    def put_slots(self, parts: torch.Tensor) -> torch.Tensor:
        """`[total, n]` → `[R, D·n]`: every part in its place, zeros elsewhere."""
        width = parts.shape[1]
        slots = parts.new_zeros(self._rows * self._destinations, width)
        slots.index_copy_(0, self._slots, parts)
        return slots.view(self._rows, self._destinations * width)
