"""Channels, in groups, cut into blocks of whole vector registers.

A group narrower than a register is no work for a matrix unit: as many groups as fit one are taken as a single group,
whose kernel has the groups' own on its diagonal and zeros elsewhere. A pixel that is not finite in one of them is NaN
in all: 0 inf.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Pair

LANES = 128
WEIGHTS = 5 << 19  # bytes of a block of the kernel
FEATURES = 512  # that a block has at most


class Blocks(NamedTuple):
    """groups: after merging `merged` of them into one; of each the inputs and outputs, and the size of their blocks."""

    groups: int
    merged: int
    inputs: int
    outputs: int
    c: int
    k: int
    depthwise: bool = False  # then inputs and outputs are all the channels

    @property
    def steps(self) -> Pair:
        """Blocks of inputs that an output block sees, and blocks of outputs of all groups."""
        return 1 if self.depthwise else -(-self.inputs // self.c), -(-self.outputs // self.k) * self.groups

    def seen(self, k, c):
        """The block of inputs that is number c of those that block k of outputs sees."""
        return k if self.depthwise else k // (self.steps[1] // self.groups) * self.steps[0] + c

    def pad(self, x: jax.Array, outputs: bool = False) -> jax.Array:
        """(..., C) or (..., K) with every group padded to whole blocks."""
        size, block = (self.outputs, self.k) if outputs else (self.inputs, self.c)
        if size % block == 0:
            return x
        x = x.reshape(*x.shape[:-1], self.groups, size)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % block)])
        return x.reshape(*x.shape[:-2], -1)

    def cut(self, y: jax.Array) -> jax.Array:
        """(..., K) without what `pad` adds to outputs."""
        if self.outputs % self.k == 0:
            return y
        y = y.reshape(*y.shape[:-1], self.groups, -1)[..., : self.outputs]
        return y.reshape(*y.shape[:-2], -1)

    def matrices(self, w: jax.Array) -> jax.Array:
        """(kh, kw, C/G, K) as (taps, C', K'): the inputs of a group, padded, by the outputs of all groups, padded."""
        c, m = w.shape[2], self.merged
        w = w.reshape(-1, 1, c, self.groups, m, self.outputs // m)  # (T, 1, C/G, groups, m, K/G)
        if m > 1:
            diagonal = jnp.eye(m, dtype=bool)[None, :, None, None, :, None]
            w = jnp.where(diagonal, w, jnp.zeros((), w.dtype))  # (T, m, C/G, groups, m, K/G)
        w = w.reshape(w.shape[0], self.inputs, -1)  # (T, m C/G, K)
        w = jnp.pad(w, ((0, 0), (0, -self.inputs % self.c), (0, 0)))
        return self.pad(w, outputs=True)

    def kernels(self, dw: jax.Array) -> jax.Array:
        """The gradient of `matrices`, (taps, C', K'), as that of the kernel, (taps, C/G, K)."""
        dw, m = self.cut(dw[:, : self.inputs]), self.merged
        dw = dw.reshape(-1, m, self.inputs // m, self.groups, m, self.outputs // m)
        dw = jnp.stack([dw[:, i, :, :, i] for i in range(m)], axis=3)  # (T, C/G, groups, m, K/G)
        return dw.reshape(dw.shape[0], self.inputs // m, -1)


def blocks(kernel: Pair, groups: int, inputs: int, outputs: int, itemsize: int, depthwise: bool) -> Blocks:
    """Of C / G inputs and K / G outputs a group: first narrower blocks of outputs, then of inputs."""
    if depthwise:
        channels = groups * outputs
        block = channels if channels <= LANES else LANES
        return Blocks(1, 1, channels, channels, block, block, True)
    fits = [m for m in range(1, groups + 1) if groups % m == 0 and m * max(inputs, outputs) <= LANES]
    merged = max(fits, default=1)
    groups, inputs, outputs = groups // merged, merged * inputs, merged * outputs

    def room(beside):
        """For how many channels beside this many."""
        return WEIGHTS // (math.prod(kernel) * itemsize * -(-beside // LANES) * LANES) // LANES * LANES

    k = _block(outputs, groups, max(min(room(inputs), FEATURES), LANES))
    return Blocks(groups, merged, inputs, outputs, _block(inputs, groups, max(room(k), LANES)), k)


def _block(size: int, groups: int, most: int) -> int:
    """Of equal blocks of whole registers; all channels if they are the one block of the one group."""
    if groups == 1 and size <= most:
        return size
    return -(-size // -(-size // most) // LANES) * LANES
