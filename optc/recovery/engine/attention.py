"""Attention and rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optc.recovery.engine.table import MS, Call, Result, operator


def _heads(x: Tensor, count: int) -> Tensor:
    """(B, S, N H) as (B, N, S, H)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, count, width // count).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(B, N, S, H) as (B, S, N H)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None, causal: bool, cap: float = 0.0
) -> Tensor:
    """Softmax(scale Q K^T + bias) V; operands (B, N, S, H)."""
    scores = scale * torch.matmul(query, key.transpose(-1, -2))
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias
    if causal:
        rows, columns = scores.shape[-2:]
        allowed = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(columns - rows)
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.matmul(torch.softmax(scores, -1), value)


def _key_mask(call: Call, mask: Tensor | None, keys: int) -> Tensor | None:
    """A mask of keys as what is added to scores: (B, T) zeros and ones, (B,) lengths, or (B, S, T)."""
    if mask is None:
        return None
    filler = call.real("mask_filter_value", -10000.0)
    if mask.dim() == 1:
        mask = torch.arange(keys, device=mask.device)[None, :] < mask[:, None]
    if mask.dim() not in (2, 3) or mask.shape[-1] != keys:
        raise call.refuse("with a mask of this form is not known")
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return (1.0 - (mask != 0).float()) * filler


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _scale(call: Call, width: int) -> float:
    return call.real("scale", 0.0) or 1.0 / math.sqrt(width)


@operator("Attention", domain=MS)
def ms_attention(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
    *others: Tensor | None,
) -> Tensor:
    if past is not None or any(other is not None for other in others) or call.integer("do_rotary", 0):
        raise call.refuse("with a past or rotary positions is not known")
    if any(value.name and value.uses() for value in call.node.outputs[1:]):
        raise call.refuse("whose keys and values are read is not known")
    count = call.integer("num_heads", 1)
    projected = torch.matmul(x, weight)
    projected = projected if bias is None else projected + bias
    sizes = call.integers("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    query, key, value = (_heads(part, count) for part in torch.split(projected, sizes, -1))
    masked = _sum(_key_mask(call, mask, key.shape[2]), added)
    causal = bool(call.integer("unidirectional", 0))
    return _joined(_attend(query, key, value, _scale(call, query.shape[-1]), masked, causal))


@operator("MultiHeadAttention", domain=MS)
def multi_head_attention(
    call: Call,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *others: Tensor | None,
) -> Result:
    count = call.integer("num_heads", 1)
    if query.dim() != 3 or key is None or value is None or any(other is not None for other in others):
        raise call.refuse("with packed operands or a shared cache is not known")
    if bias is not None:
        rows = query.shape[-1]
        query = query + bias[:rows]
        if key.dim() == 3:
            key = key + bias[rows : rows + key.shape[-1]]
            value = value + bias[-value.shape[-1] :]
    query = _heads(query, count)
    key, value = (_heads(part, count) if part.dim() == 3 else part for part in (key, value))
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    masked = _sum(_key_mask(call, mask, key.shape[2]), added)
    causal = bool(call.integer("unidirectional", 0))
    return _joined(_attend(query, key, value, _scale(call, query.shape[-1]), masked, causal)), key, value


@operator("Attention")
def attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *others: Tensor | None,
) -> Result:
    if any(other is not None for other in others) or len([out for out in call.node.outputs if out.name]) > 3:
        raise call.refuse("with lengths of its own or its scores as an output is not known")
    flat = query.dim() == 3
    if flat:
        query = _heads(query, call.integer("q_num_heads", 1))
        key, value = (_heads(part, call.integer("kv_num_heads", 1)) for part in (key, value))
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    repeats = query.shape[1] // key.shape[1]
    keys, values = (part.repeat_interleave(repeats, 1) if repeats > 1 else part for part in (key, value))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=query.device).masked_fill(~mask, torch.finfo(query.dtype).min)
    cap, causal = call.real("softcap", 0.0), bool(call.integer("is_causal", 0))
    if cap and mask is not None:
        raise call.refuse("with both a mask and a cap is not known")
    out = _attend(query, keys, values, _scale(call, query.shape[-1]), mask, causal, cap)
    return (_joined(out) if flat else out), key, value


@operator("RotaryEmbedding", domain=MS)
def rotary_embedding(call: Call, x: Tensor, positions: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    width = 2 * cosines.shape[1]
    if call.integer("rotary_embedding_dim", 0) not in (0, width) or call.real("scale", 1.0) != 1.0:
        raise call.refuse("of a part of the head is not known")
    flat = x.dim() == 3
    heads = _heads(x, call.integer("num_heads", 0) or x.shape[-1] // width) if flat else x
    places = positions.long()
    if places.numel() == 1:  # an offset
        places = places.reshape(1, 1) + torch.arange(heads.shape[2], device=x.device)[None]
    cosine, sine = cosines[places][:, None], sines[places][:, None]
    if call.integer("interleaved", 0):
        a, b = heads[..., 0::2], heads[..., 1::2]
        turned = torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2)
    else:
        a, b = heads.chunk(2, -1)
        turned = torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)
    return _joined(turned) if flat else turned
