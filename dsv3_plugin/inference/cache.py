"""The latents of tokens, in pages: what multi-head latent attention has to remember.

Of each token a layer keeps the normed latent that keys and values of all heads are made of, and the
rotated key that all heads share (DeepSeek-V2, arXiv 2405.04434, section 2.1): 512 + 64 values at
DeepSeek-V3's size, where whole keys and values would be 128 · (192 + 128).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.pages import PAGE_TOKENS, pages_for
from dsv3_plugin.numbers import bytes_text

_EXPERT = torch.int32


@dataclass(frozen=True)
class CacheShape:
    """How much a model remembers.

    Attributes:
        layers: that attend, those of multi-token prediction included where drafts are made.
        latent: width of the latent of keys and values.
        rotary: width of the shared rotated key.
        dtype: of the model.
        routed: MoE layers whose choice is remembered too, and experts of a token in each.
    """

    layers: int
    latent: int
    rotary: int
    dtype: torch.dtype
    routed: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls,
        config: MLATransformerConfig,
        *,
        layers: int | None = None,
        predictors: int = 0,
        moe_layers: int = 0,
    ) -> "CacheShape":
        """What a model's layers keep.

        Args:
            config: of the model.
            layers: of its layers those that this rank has; None: all.
            predictors: layers of multi-token prediction that run too.
            moe_layers: that remember where tokens went.
        """
        return cls(
            (config.num_layers if layers is None else layers) + predictors,
            config.kv_lora_rank,
            config.qk_pos_emb_head_dim,
            config.params_dtype,
            (moe_layers, config.moe_router_topk if moe_layers else 0),
        )

    @property
    def width(self) -> int:
        """Values of a token and layer."""
        return self.latent + self.rotary

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in all layers."""
        layers, experts = self.routed
        return self.layers * self.width * self.dtype.itemsize + layers * experts * _EXPERT.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers."""
        return PAGE_TOKENS * self.token_bytes

    def bytes_for(self, lengths: list[int]) -> int:
        """Bytes of the pages of texts of these lengths."""
        return sum(map(pages_for, lengths)) * self.page_bytes

    def pages_in(self, budget: int) -> int:
        """Pages that so many bytes hold.

        Raises:
            UserError: not one.
        """
        return pages_in(budget, self.page_bytes)


def pages_in(budget: int, page_bytes: int) -> int:
    """Pages of so many bytes each that a budget holds.

    Raises:
        UserError: not one.
    """
    pages = budget // page_bytes
    if not pages:
        raise UserError(
            f"The cache was given {bytes_text(budget)}, and a page of {PAGE_TOKENS} tokens "
            f"takes {bytes_text(page_bytes)}: give it more."
        )
    return pages


class LatentCache:
    """The memory of the pages.

    Attributes:
        rows: [layers, pages, tokens of a page, width]. Rows of a page that no token of its text has
            yet are finite: their values are multiplied by a probability of 0.
        experts: [pages, tokens of a page, MoE layers, top-k], where tokens went.
    """

    def __init__(self, shape: CacheShape, pages: int, device: torch.device) -> None:
        self.shape = shape
        self.rows = torch.zeros(
            shape.layers, pages, PAGE_TOKENS, shape.width, dtype=shape.dtype, device=device
        )
        self.experts = torch.zeros(pages, PAGE_TOKENS, *shape.routed, dtype=_EXPERT, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.rows.nbytes + self.experts.nbytes

    def prepare(self, fresh: Sequence[int], copies: Sequence[tuple[int, int, int]]) -> None:
        """Make pages that were handed out ready: what texts before left there may be NaN.

        Args:
            fresh: they are filled with zeros.
            copies: (from, to, count), pages that begin with so many tokens of another, made one
                after another and before `fresh`, which may have been read until then.
        """
        for source, target, count in copies:
            self.rows[:, target, :count] = self.rows[:, source, :count]
            self.rows[:, target, count:] = 0
            self.experts[target] = self.experts[source]
        copied = {target for _, target, _ in copies}
        if blank := [page for page in fresh if page not in copied]:
            self.rows[:, blank] = 0

    def write(self, layer: int, slots: Tensor, rows: Tensor) -> None:
        """Keep the rows [t, width] of tokens in their slots [t]."""
        self.rows[layer].flatten(0, 1).index_copy_(0, slots, rows)

    def read(self, layer: int, table: Tensor) -> Tensor:
        """The rows of texts whose pages are in `table` [b, pages]: [b, pages · tokens, width]."""
        rows = self.rows[layer].index_select(0, table.flatten())
        return rows.view(len(table), -1, self.shape.width)

    def write_experts(self, slots: Tensor, experts: list[Tensor]) -> None:
        """Keep where tokens went, of each MoE layer [t, top-k]."""
        if self.experts.numel():
            chosen = torch.stack(experts, dim=1).to(_EXPERT)
            self.experts.flatten(0, 1).index_copy_(0, slots, chosen)

    def read_experts(self, pages: Sequence[int], count: int) -> Tensor:
        """Of a text's first tokens, int32 [count, MoE layers, top-k] on the CPU."""
        return self.experts[list(pages)].flatten(0, 1)[:count].cpu()
