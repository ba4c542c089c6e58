"""What a row on the wire looks like: bytes of routing weights, then bytes of hidden state.

One message per hop carries both, so that a hop is one collective. Hidden states travel in their own
dtype, or in FP8 as DeepSeek-V3 sends them: 1×128 tiles of E4M3, then one power-of-two scale a tile,
as the exponent byte it is (E8M0). Between the two hops rows are copied as bytes: they are quantised
once, at their source, and read once, at their experts.
"""

from dataclasses import dataclass, replace

import torch

from dsv3_plugin.dispatch.topology import Topology
from dsv3_plugin.dispatch.traffic import RowWidths
from dsv3_plugin.fp8.quantize import E4M3, TILE, dequantize_tiles, quantize_tiles

E8M0 = torch.float8_e8m0fnu
NOT_ROUTED = float("-inf")
"""Stands among the weights of a row for an expert the token does not go to."""

# Every section starts at a multiple of this, so that it can be viewed in its own dtype.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Row:
    """Layout of a row.

    Attributes:
        hidden: size of the hidden state.
        dtype: of the hidden state at both ends.
        fp8: whether it travels in FP8.
        weights: routing weights (or their gradients) the row carries; may be 0.
        weight_dtype: their dtype.
    """

    hidden: int
    dtype: torch.dtype
    fp8: bool = False
    weights: int = 0
    weight_dtype: torch.dtype = torch.float32

    @property
    def weight_bytes(self) -> int:
        return _aligned(self.weights * self.weight_dtype.itemsize)

    @property
    def hidden_bytes(self) -> int:
        if self.fp8:
            return _aligned(self.hidden + -(-self.hidden // TILE))
        return _aligned(self.hidden * self.dtype.itemsize)

    @property
    def bytes(self) -> int:
        """Width of the row."""
        return self.weight_bytes + self.hidden_bytes

    def carrying(self, weights: int, dtype: torch.dtype) -> "Row":
        """The same row with so many weights."""
        return replace(self, weights=weights, weight_dtype=dtype)

    def encode(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states `[R, h]` as bytes `[R, hidden_bytes]`; no copy where none is needed."""
        if self.fp8:
            values, scales = quantize_tiles(hidden, power_of_two=True)
            parts = [values.view(torch.uint8), scales.to(E8M0).view(torch.uint8)]
        else:
            parts = [hidden.contiguous().view(torch.uint8)]
        padding = self.hidden_bytes - sum(part.shape[1] for part in parts)
        if padding:
            parts.append(parts[0].new_zeros(len(hidden), padding))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def pack(
        self, encoded: torch.Tensor, rows: torch.Tensor | None, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """The message: the chosen rows of `encoded`, each with its weights.

        Args:
            encoded: `[T, hidden_bytes]`, from `encode`.
            rows: `[R]` which rows to send; None for all, in order.
            weights: `[R, weights]`, absent when the layout has none.

        Returns:
            uint8 `[R, bytes]`.
        """
        if weights is None:
            return encoded if rows is None else encoded.index_select(0, rows)
        message = encoded.new_empty(len(weights), self.bytes)
        hidden, carried = self.unpack(message)
        carried.copy_(weights)
        if rows is None:
            hidden.copy_(encoded)
        else:
            torch.index_select(encoded, 0, rows, out=hidden)
        return message

    def unpack(self, message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Views of the encoded hidden states `[R, hidden_bytes]` and of the weights, if any."""
        encoded = message[:, self.weight_bytes :]
        if not self.weights:
            return encoded, None
        section = message[:, : self.weights * self.weight_dtype.itemsize]
        return encoded, section.view(self.weight_dtype)

    def decode(self, encoded: torch.Tensor) -> torch.Tensor:
        """Hidden states `[R, h]` from what `encode` made: a view, or read from FP8."""
        if not self.fp8:
            return encoded[:, : self.hidden * self.dtype.itemsize].view(self.dtype)
        values = encoded[:, : self.hidden].view(E4M3)
        scales = encoded[:, self.hidden : self.hidden + -(-self.hidden // TILE)].view(E8M0)
        return dequantize_tiles(values, scales.float(), self.dtype)


def row_widths(
    topology: Topology, hidden: int, dtype: torch.dtype, weight_dtype: torch.dtype, *, fp8: bool
) -> RowWidths:
    """Bytes per row on each passage of a layer, for the closed form of the traffic."""
    there, back = Row(hidden, dtype, fp8), Row(hidden, dtype)
    per_node, per_rank = topology.experts_per_node, topology.experts_per_rank
    return RowWidths(
        dispatch_rail=there.carrying(per_node, weight_dtype).bytes,
        dispatch_node=there.carrying(per_rank, weight_dtype).bytes,
        combine=back.bytes,
        combine_gradient=there.bytes,
        dispatch_gradient_rail=back.carrying(per_node, weight_dtype).bytes,
        dispatch_gradient_node=back.carrying(per_rank, weight_dtype).bytes,
    )


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
