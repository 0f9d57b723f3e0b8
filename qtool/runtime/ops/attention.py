"""Attention and rotary position embedding (opset 23)."""

import math

import torch

from qtool.runtime.tensors import DTYPES, Op, T


def _heads(x: T, count: int | None) -> T:
    """Return [batch, heads, length, size] from that or from [batch, length, heads * size]."""
    if x.dim() == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], int(count or 1), -1).transpose(1, 2)


def _bias(
    scores: T, mask: T | None, past: int, valid: T | None, window: tuple[int | None, int | None]
) -> T:
    """Compute the term added to the scores: 0 or the float mask where allowed, -inf elsewhere.

    Args:
        scores: [batch, heads, queries, keys].
        mask: bool (True: attend) or float, broadcastable to the scores.
        past: number of cached keys.
        valid: keys of each sample that are no padding, [batch].
        window: largest distance to a key on the left and on the right, None for any.
    """
    queries, keys = scores.shape[-2:]
    bias = scores.new_zeros(scores.shape)
    column = torch.arange(keys, device=scores.device)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
        if mask.shape[-1] < keys:
            rest = mask.new_full((*mask.shape[:-1], keys - mask.shape[-1]), -math.inf)
            mask = torch.cat([mask, rest], -1)
        bias = bias + mask
    if valid is not None:
        bias = bias.masked_fill(column >= valid.reshape(-1, 1, 1, 1), -math.inf)
    offset: int | T = past
    if valid is not None and not past:
        offset = valid.reshape(-1, 1, 1, 1) - queries
    row = torch.arange(queries, device=scores.device).unsqueeze(1) + offset
    left, right = window
    if left is not None:
        bias = bias.masked_fill(column < row - left, -math.inf)
    if right is not None:
        bias = bias.masked_fill(column > row + right, -math.inf)
    return bias


def attention(
    q: T,
    k: T,
    v: T,
    attn_mask: T | None = None,
    past_key: T | None = None,
    past_value: T | None = None,
    nonpad_kv_seqlen: T | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[T, ...]:
    """Compute softmax(Q K' * scale + bias) V for each head.

    Returns:
        Y, the keys and values including the past ones, and the scores of
        ``qk_matmul_output_mode``.
    """
    flat = q.dim() == 3
    q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present = (k, v)
    if k.shape[1] != q.shape[1]:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    # ONNX scales Q and K by the root each: float16 products stay in range.
    factor = math.sqrt(scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    raw = torch.matmul(q * factor, (k * factor).transpose(-1, -2))
    capped = torch.tanh(raw / softcap) * softcap if softcap else raw
    left = left_window_size if left_window_size >= 0 else None
    right = right_window_size if right_window_size >= 0 else None
    window = (left, 0 if is_causal else right)
    biased = capped + _bias(capped, attn_mask, past, nonpad_kv_seqlen, window)
    wide = biased.to(DTYPES[softmax_precision]) if softmax_precision else biased
    # A query without any allowed key returns zeros; softmax of a row of -inf would be NaN.
    masked = (wide == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(wide.masked_fill(masked, 0), -1).masked_fill(masked, 0).to(q.dtype)
    y = torch.matmul(weights, v)
    if flat:
        y = y.transpose(1, 2).flatten(2)
    return y, *present, (raw, capped, biased, weights)[qk_matmul_output_mode]


def rotary_embedding(
    x: T,
    cos: T,
    sin: T,
    position_ids: T | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> T:
    """Rotate pairs of features by an angle that depends on the position."""
    heads = _heads(x, num_heads)
    width = rotary_embedding_dim or heads.shape[-1]
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated, rest = heads[..., :width], heads[..., width:]
    if interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
    else:
        a, b = rotated.chunk(2, -1)
    parts = (cos * a - sin * b, sin * a + cos * b)
    both = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    y = torch.cat([both, rest], -1)
    return y if x.dim() == 4 else y.transpose(1, 2).reshape(x.shape)


TABLE: dict[str, Op] = {"Attention": attention, "RotaryEmbedding": rotary_embedding}
