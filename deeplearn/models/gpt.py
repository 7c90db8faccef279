"""The decoder-only Transformer (Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3)
and the variants of it that later models chose.

With the norms N1, N2, of parameters of their own, each of the layers is

    x = x + attention(N1 x),   x = x + mlp(N2 x)

All layers are one loop: a program's size and its compilation do not grow with the depth, and each parameter is one
array (depth, ...).
"""

import math
import re
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn import fields
from deeplearn.errors import UserError
from deeplearn.fields import Field
from deeplearn.layers import indices, positions, remat, sharding
from deeplearn.layers.attention import attention
from deeplearn.layers.dense import Dense
from deeplearn.layers.dropout import Dropout

# Flax's fast variance, E x^2 - (E x)^2, has no correct digit left where a mean is large.
NORMS = {"layer": partial(nn.LayerNorm, use_fast_variance=False), "rms": nn.RMSNorm}
MLPS = ("gelu", "swiglu")

# What the dimensions of the parameters are, by their paths; placement gives the names axes of the mesh.
AXES = (
    (r"token_embedding$", ("vocabulary", "embed")),
    (r"position_embedding$", ("length", "embed")),
    (r"head/kernel$", ("embed", "vocabulary")),
    (r"layers/.*(qkv|gate|up)/kernel$", ("layers", "embed", "features")),
    (r"layers/.*(qkv|gate|up)/bias$", ("layers", "features")),
    (r"layers/.*(out|down)/kernel$", ("layers", "features", "embed")),
    (r"layers/", ("layers", None)),  # other biases and scales, which are small
)


class Architecture(NamedTuple):
    """The numbers of a model.

    Fields:
      vocabulary, length: tokens that there are, and how many the model sees at most.
      width, depth, heads: of the residual stream, in layers, of attention, where width / heads is a head's.
      kv_heads: heads of keys and values, each of which several query heads share (Ainslie et al. 2023, GQA); None: as
        many as query heads.
      positions: "learned", "rotary" or "alibi", see deeplearn.layers.positions.
      norm: "layer", or "rms" (Zhang and Sennrich 2019, Root mean square layer normalization).
      mlp: "gelu", or "swiglu", silu(x U) * (x V) W (Shazeer 2020, GLU variants improve Transformer).
      mlp_ratio: the MLP's hidden features over the width.
      bias: whether dense layers and layer norms add one.
      tied: whether the logits are products with the embeddings of the tokens (Press and Wolf 2017).
      dropout: of the embeddings, of attention's weights, and of what each half of a layer adds.
      dtype: of the computation; norms, attention's sums and the logits are float32, as parameters are.
      remat: what the backward pass computes anew, see deeplearn.layers.remat.
      rows_multiple: the table of embeddings, and with it the logits, has rows for tokens that there are not, up to a
        multiple of this, which devices and a TPU's lanes divide (Shoeybi et al. 2019, Megatron-LM, section 5.1).
    """

    vocabulary: int
    length: int
    width: int = 128
    depth: int = 4
    heads: int = 4
    kv_heads: int | None = None
    positions: str = "learned"
    norm: str = "layer"
    mlp: str = "gelu"
    mlp_ratio: float = 4.0
    bias: bool = True
    tied: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"
    rows_multiple: int = 1

    @property
    def rows(self) -> int:
        """Of the table of embeddings."""
        return -(-self.vocabulary // self.rows_multiple) * self.rows_multiple


class Cache(NamedTuple):
    """What attention has seen: keys and values (depth, B, S, kv_heads, D), and how many of S positions are filled."""

    key: jax.Array
    value: jax.Array
    filled: jax.Array


# What the fields of an Architecture may hold.
FIELDS = {
    "vocabulary": fields.COUNT,
    "length": fields.COUNT,
    "width": fields.SIZE,
    "depth": fields.DEPTH,
    "heads": fields.SIZE,
    "kv_heads": fields.SIZE._replace(unset=True),
    "positions": Field(str, choices=positions.KINDS),
    "norm": Field(str, choices=tuple(NORMS)),
    "mlp": Field(str, choices=MLPS),
    "mlp_ratio": Field(float, 0, above=True),
    "bias": fields.SWITCH,
    "tied": fields.SWITCH,
    "dropout": fields.FRACTION,
    "remat": Field(str, choices=tuple(remat.POLICIES)),
    "rows_multiple": fields.COUNT,
}


def check(architecture: Architecture) -> None:
    """Raises UserError for a value out of range, and for numbers that do not fit each other."""
    a = architecture
    for name, field in FIELDS.items():
        fields.check(name, getattr(a, name), field)
    if a.width % a.heads:
        raise UserError(f"{a.heads} heads do not divide the width, {a.width}; choose a multiple of them")
    if a.heads % (a.kv_heads or a.heads):
        raise UserError(f"kv_heads {a.kv_heads} does not divide heads {a.heads}; choose a divisor of it")
    if a.positions == "rotary" and a.width // a.heads % 2:
        raise UserError(f"rotary positions turn pairs: the head's {a.width // a.heads} features must be even")


def empty(architecture: Architecture, batch: int) -> Cache:
    """A cache of no tokens, for `batch` texts."""
    a = architecture
    shape = (a.depth, batch, a.length, a.kv_heads or a.heads, a.width // a.heads)
    return Cache(jnp.zeros(shape, a.dtype), jnp.zeros(shape, a.dtype), jnp.int32(0))


def has_room(cache: Cache, count: int) -> jax.Array:
    """Whether `count` tokens more fit; UserError if it is known that they do not."""
    length = cache.key.shape[2]
    if not isinstance(cache.filled, jax.core.Tracer) and int(cache.filled) > length - count:
        raise UserError(f"the cache has {int(cache.filled)} of {length} tokens: there is no room for {count} more")
    return cache.filled <= length - count


class GPT(nn.Module):
    """Tokens (B, T) to float32 logits of the tokens that follow, (B, T, rows), -inf of rows beyond the vocabulary.

    With a cache of the tokens before, also the cache with these. A cache without room for them is refused where
    `filled` is known when the model is traced; elsewhere it gives NaN, and so does a token that does not exist.

    >>> model = GPT(Architecture(vocabulary=65, length=64, width=32, depth=2))
    >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((5, 64), jnp.int32))
    >>> logits.shape, variables["params"]["layers"]["qkv"]["kernel"].shape
    ((5, 64, 65), (2, 32, 96))
    """

    architecture: Architecture
    divides_positions = True  # over a mesh's axis `sequence`

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False, cache: Cache | None = None):
        a = self.architecture
        check(a)
        if tokens.shape[1] > a.length:
            raise UserError(f"{tokens.shape[1]} tokens are more than the model's length, {a.length}")
        start = jnp.int32(0) if cache is None else cache.filled
        embedding = self.param("token_embedding", nn.initializers.normal(0.02), (a.rows, a.width), jnp.float32)
        x = indices.rows(embedding.astype(a.dtype), tokens, a.vocabulary)  # (B, T, width)
        if cache is not None:
            x = jnp.where(has_room(cache, tokens.shape[1]), x, jnp.nan)
        if a.positions == "learned":
            table = self.param("position_embedding", nn.initializers.normal(0.02), (a.length, a.width), jnp.float32)
            x = x + jax.lax.dynamic_slice_in_dim(table, start, x.shape[1]).astype(a.dtype)[None]
        x = Dropout(a.dropout, deterministic=not train)(x)

        layer = Layer(a, train, parent=None)
        stacked = self.param("layers", lambda rng: stack(layer, jax.random.split(rng, a.depth), x))
        keys = jax.random.split(self.make_rng("dropout"), a.depth) if train and a.dropout else None

        def one(x, each):
            params, key, seen = each
            rngs = None if key is None else {"dropout": key}
            return layer.apply({"params": gathered(params, a.dtype)}, x, start, seen, rngs=rngs)

        old = None if cache is None else (cache.key, cache.value)
        x, seen = jax.lax.scan(remat.scanned(one, a.remat), x, (stacked, keys, old))

        x = norm(a, "norm")(x.astype(jnp.float32)).astype(a.dtype)
        if a.tied:
            logits = jnp.einsum("btd,vd->btv", x, embedding.astype(a.dtype), preferred_element_type=jnp.float32)
        else:
            logits = dense(a, a.rows, "head", use_bias=False)(x).astype(jnp.float32)
        if a.rows > a.vocabulary:
            known = jnp.arange(a.rows, dtype=jnp.int32) < a.vocabulary
            logits = jnp.where(known[None, None], logits, -jnp.inf)
        return logits if cache is None else (logits, Cache(*seen, start + x.shape[1]))


def stack(layer: nn.Module, keys: jax.Array, x: jax.Array):
    """The parameters of as many layers as there are keys, each array with an axis for them in front."""
    return jax.vmap(lambda key: layer.init(key, x, jnp.int32(0), None)["params"])(keys)


def gathered(params, dtype):
    """One layer's parameters, its matrices of this dtype and whole along `embed`, from the devices that have parts.

    The backward pass gathers them anew: else all layers' would be kept for it, whole.
    """

    def together(path, x):
        name = "layers/" + jax.tree_util.keystr(path, simple=True, separator="/")
        _, *names = next(axes for pattern, axes in AXES if re.search(pattern, name))
        return sharding.whole(x.astype(dtype), [names.index("embed")]) if "embed" in names else x

    return jax.tree_util.tree_map_with_path(together, params)


class Layer(nn.Module):
    """x (B, T, width) from position `start` on to the same shape, and the keys and values of all that it has seen."""

    architecture: Architecture
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, start: jax.Array, cache: tuple[jax.Array, jax.Array] | None):
        a = self.architecture
        dropout = Dropout(a.dropout, deterministic=not self.train)
        small = 0.02 / math.sqrt(2 * a.depth)  # so that a sum over all layers has the variance of one
        y = norm(a, "attention_norm")(x.astype(jnp.float32)).astype(a.dtype)
        y, cache = self.attend(y, start, cache)
        x = x + dropout(dense(a, a.width, "out", small)(y))
        y = norm(a, "mlp_norm")(x.astype(jnp.float32)).astype(a.dtype)
        hidden = round(a.mlp_ratio * a.width)
        if a.mlp == "swiglu":
            y = nn.silu(dense(a, hidden, "gate")(y)) * dense(a, hidden, "up")(y)  # (B, T, hidden)
        else:
            y = nn.gelu(dense(a, hidden, "up")(y))
        return x + dropout(dense(a, a.width, "down", small)(y)), cache

    def attend(self, x, start, cache):
        a = self.architecture
        batch, time, width = x.shape
        heads, few, features = a.heads, a.kv_heads or a.heads, width // a.heads
        group = heads // few
        # A key's queries lie beside it, so that devices that divide the features have whole heads.
        qkv = dense(a, few * (group + 2) * features, "qkv")(x).reshape(batch, time, few, group + 2, features)
        query = qkv[:, :, :, :group].reshape(batch, time, heads, features)
        key, value = qkv[:, :, :, group], qkv[:, :, :, group + 1]  # (B, T, few, D)
        if a.positions == "rotary":
            at = start + jnp.arange(time, dtype=jnp.int32)
            query, key = positions.rotate(query, at), positions.rotate(key, at)
        options = {}
        if cache is not None:
            key, value = cache = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
                for old, new in zip(cache, (key, value), strict=True)
            )  # (B, S, few, D)
            at = start + jnp.arange(time, dtype=jnp.int32)
            options["mask"] = (jnp.arange(key.shape[1], dtype=jnp.int32)[None] <= at[:, None])[None, None]
        if a.positions == "alibi":
            options["bias"] = positions.alibi(heads, key.shape[1])
        if self.train and a.dropout:
            options |= {"dropout_rate": a.dropout, "dropout_rng": self.make_rng("dropout")}
        y = attention(query, key, value, is_causal=cache is None, **options)
        return y.reshape(batch, time, width), cache


def norm(a: Architecture, name: str) -> nn.Module:
    more = {"use_bias": a.bias} if a.norm == "layer" else {}
    return NORMS[a.norm](epsilon=1e-5, name=name, **more)


def dense(a: Architecture, features: int, name: str, deviation: float = 0.02, use_bias: bool | None = None) -> Dense:
    use_bias = a.bias if use_bias is None else use_bias
    return Dense(features, a.dtype, use_bias, nn.initializers.normal(deviation), name=name)
