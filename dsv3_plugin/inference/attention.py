"""Multi-head latent attention over cached latents, two ways to the same numbers.

Keys and values of a head are products of the latent, k = W_UK c and v = W_UV c, so
q · k = (W_UKᵀ q) · c and Σ p v = W_UV Σ p c (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).

* Plain: make keys and values of all positions and attend as in training. Right for many tokens at
  once, a prompt's.
* Absorbed: take queries to the latents' space, attend to the latents of the cache, and take
  the result back. Right for few tokens against a long past, where making keys and values of all of
  it would be most of the work. Where numbers are to be those of training to the last bit
  (`model/rounded_once.py`), keys and values are made all the same.

Both read the projection's own weight. Nothing is multiplied beforehand and kept, so nothing can be
of older weights than the rest of the model.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor

from dsv3_plugin.inference.batch import Batch, Group
from dsv3_plugin.inference.cache import LatentCache
from dsv3_plugin.model import rounded_once
from dsv3_plugin.model.attention import LatentAttention
from dsv3_plugin.model.rotary import rotate


@dataclass(frozen=True)
class HeadShape:
    """Widths of a head: of the latent, of keys without position, of the rotary part, of values."""

    latent: int
    plain: int
    rotary: int
    value: int

    @classmethod
    def of(cls, config: MLATransformerConfig) -> "HeadShape":
        """Those of a model."""
        return cls(
            config.kv_lora_rank,
            config.qk_head_dim,
            config.qk_pos_emb_head_dim,
            config.v_head_dim,
        )

    def absorbed_is_cheaper(self, count: int, length: int) -> bool:
        """Whether `count` tokens that see `length` positions take fewer multiplications absorbed.

        Of a head, with c the latent's width: plain length · c · (d + d_v) for keys and values and
        count · length · (d + d_r + d_v) to attend; absorbed count · c · (d + d_v) there and back
        and count · length · (2 c + d_r).
        """
        project = self.latent * (self.plain + self.value)
        plain = length * project + count * length * (self.plain + self.rotary + self.value)
        absorbed = count * project + count * length * (2 * self.latent + self.rotary)
        return absorbed < plain


@dataclass(frozen=True)
class Rotation:
    """cos and sin of all positions, [positions, 1, d / 2], YaRN's factor included."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def up_to(cls, attention: LatentAttention, length: int, dtype: torch.dtype) -> "Rotation":
        """Those that a layer rotates with in training."""
        cos, sin = attention.rotation(length, dtype)
        return cls(cos[:, 0], sin[:, 0])

    def of(self, positions: Tensor) -> "Rotation":
        """Of some positions [t]."""
        return Rotation(self.cos[positions], self.sin[positions])


def attend(
    attention: LatentAttention,
    hidden: Tensor,
    batch: Batch,
    rotation: Rotation,
    cache: LatentCache,
    layer: int,
) -> Tensor:
    """What attention adds to the rows of a batch; their latents are in the cache afterwards.

    Args:
        attention: of the layer.
        hidden: [t, h], normed.
        batch: whose rows they are.
        rotation: of its positions.
        cache: of all layers.
        layer: number of this one in it.

    Returns:
        [t, h].
    """
    config = attention.config
    heads = config.num_attention_heads
    q_latent = hidden
    if config.q_lora_rank is not None:
        q_latent = F.linear(hidden, attention.linear_q_down_proj.weight)
        q_latent = attention.q_layernorm(q_latent)
        up = attention.linear_q_up_proj
    else:
        up = attention.linear_q_proj
    query = F.linear(q_latent, up.weight).view(len(hidden), heads, -1)
    kv = F.linear(hidden, attention.linear_kv_down_proj.weight)
    latent, key = kv.split([config.kv_lora_rank, config.qk_pos_emb_head_dim], dim=-1)
    row = torch.empty_like(kv)
    row[:, : config.kv_lora_rank] = attention.kv_layernorm(latent)
    rotate(key, rotation.cos[:, 0], rotation.sin[:, 0], row[:, config.kv_lora_rank :])
    turned = query.new_empty(len(hidden), heads, config.qk_pos_emb_head_dim)
    rotate(query[..., config.qk_head_dim :], rotation.cos, rotation.sin, turned)
    straight = query[..., : config.qk_head_dim]
    cache.write(layer, batch.slots, row)
    # [heads, d + values, latent]
    project = attention.linear_kv_up_proj.weight.view(heads, -1, config.kv_lora_rank)
    outs = []
    for group in batch.groups:
        way = _plain if not group.absorbed else _together if rounded_once.here() else _absorbed
        rows = straight[group.rows], turned[group.rows]
        # What is read has no name here, and is gone before the next group's is.
        outs.append(way(attention, *rows, cache.read(layer, group.table), project, group))
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return F.linear(out, attention.linear_proj.weight)


def _absorbed(
    attention: LatentAttention,
    straight: Tensor,
    turned: Tensor,
    known: Tensor,
    project: Tensor,
    group: Group,
) -> Tensor:
    """[rows, heads · values] from latents as they are [b, positions, latent + rotary]."""
    batch, count = group.hidden.shape[:2]
    to_keys, to_values = project.split(
        [straight.shape[-1], project.shape[1] - straight.shape[-1]], dim=1
    )
    latent = project.shape[-1]
    absorbed = torch.bmm(straight.transpose(0, 1), to_keys).transpose(0, 1)
    query = torch.cat([absorbed, turned], dim=-1).view(batch, -1, known.shape[-1])
    scale = attention.softmax_scale
    if query.dtype == torch.float32:
        scores = torch.bmm(query * scale, known.transpose(1, 2))
        by_token = scores.view(batch, count, -1, scores.shape[-1])
        by_token.masked_fill_(group.hidden, float("-inf"))
        mixed = torch.bmm(scores.softmax(-1), known[..., :latent])
    else:  # torch's own keeps scores in FP32, and wants values as wide as keys on a CPU
        visible = ~group.hidden.expand(-1, -1, len(project), -1).flatten(1, 2)
        known = known[:, None]
        mixed = F.scaled_dot_product_attention(
            query[:, None], known, known, attn_mask=visible[:, None], scale=scale
        )[:, 0, :, :latent]
    mixed = mixed.reshape(len(straight), -1, latent).transpose(0, 1)
    return torch.bmm(mixed, to_values.transpose(1, 2)).transpose(0, 1).flatten(1)


def _together(
    attention: LatentAttention,
    straight: Tensor,
    turned: Tensor,
    known: Tensor,
    project: Tensor,
    group: Group,
) -> Tensor:
    """As `_absorbed`, with keys and values made as in training, where numbers are to be equal."""
    batch, count = group.hidden.shape[:2]
    query = torch.cat([straight, turned], dim=-1).view(batch, count, len(project), -1)
    key, value = _keys_values(known, project, straight.shape[-1])
    width = value.shape[-1]
    value = F.pad(value, (0, key.shape[-1] - width))
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=~group.hidden.transpose(1, 2),
        scale=attention.softmax_scale,
    )
    return out[..., :width].transpose(1, 2).reshape(len(straight), -1)


def _plain(
    attention: LatentAttention,
    straight: Tensor,
    turned: Tensor,
    known: Tensor,
    project: Tensor,
    group: Group,
) -> Tensor:
    """[rows, heads · values] of one sequence, by the layer's own core attention."""
    (length,) = group.lengths
    key, value = _keys_values(known[0, :length], project, straight.shape[-1])
    query = torch.cat([straight, turned], dim=-1)
    out = attention.core_attention(query[:, None], key[:, None], value[:, None], None)
    return out[:, 0]


def _keys_values(known: Tensor, project: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """[..., positions, heads, d] and [..., positions, heads, values] from what is cached.

    Args:
        known: [..., positions, latent + rotary].
        project: [heads, width + values, latent].
        width: of keys without position.
    """
    heads, each, wide = project.shape
    latent, rotated = known.split([wide, known.shape[-1] - wide], dim=-1)
    both = F.linear(latent, project.flatten(0, 1)).unflatten(-1, (heads, each))
    plain, value = both.split([width, each - width], dim=-1)
    rotated = rotated.unsqueeze(-2).expand(*plain.shape[:-1], -1)
    return torch.cat([plain, rotated], dim=-1), value
