"""Recurrent layers: the tanh network (Elman 1990, Finding structure in time), the LSTM (Hochreiter and Schmidhuber
1997, with the forget gate of Gers et al. 2000) and the GRU (Cho et al. 2014, with the reset gate applied after the
recurrent product, as in cuDNN and PyTorch).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deeplearn.errors import unknown

State = tuple[jax.Array, ...]  # each (B, H); the hidden state h first


class Cell(NamedTuple):
    """A recurrent cell: z = [x, h] W + b, state = update(z, state).

    Fields:
      update: `(z (B, n H), state) -> state`, elementwise.
      states: how many arrays (B, H) the state has.
      input: which of z's n blocks of H columns the input x feeds, in the order of its kernel's columns.
      recurrent: which blocks h feeds, likewise.
      bias: the initial bias of each of the n blocks.
    """

    update: Callable[[jax.Array, State], State]
    states: int
    input: tuple[int, ...]
    recurrent: tuple[int, ...]
    bias: tuple[float, ...]


def _gates(z: jax.Array, kinds: str) -> list[jax.Array]:
    """Blocks of columns through a sigmoid ('s') or tanh ('t') each: sigmoid(z) = (1 + tanh(z / 2)) / 2, so that one
    vectorised tanh serves them all.
    """
    half = np.array([0.5 if kind == "s" else 1.0 for kind in kinds])
    scale = np.repeat(half, z.shape[-1] // len(kinds)).astype(z.dtype)
    gates = jnp.split(jnp.tanh(z * scale[None]), len(kinds), axis=-1)
    return [0.5 * gate + 0.5 if kind == "s" else gate for gate, kind in zip(gates, kinds, strict=True)]


def _rnn(z: jax.Array, state: State) -> State:
    return (jnp.tanh(z),)


def _lstm(z: jax.Array, state: State) -> State:
    i, f, g, o = _gates(z, "ssts")
    c = f * state[1] + i * g
    return o * jnp.tanh(c), c


def _gru(z: jax.Array, state: State) -> State:
    gates, input, recurrent = jnp.split(z, (z.shape[-1] // 2, 3 * z.shape[-1] // 4), axis=-1)
    r, u = _gates(gates, "ss")
    n = jnp.tanh(input + r * recurrent)
    return ((1 - u) * n + u * state[0],)


CELLS = {
    "rnn": Cell(_rnn, 1, (0,), (0,), (0.0,)),
    # A forget gate that starts open lets gradients through (Jozefowicz et al. 2015, section 4).
    "lstm": Cell(_lstm, 2, (0, 1, 2, 3), (0, 1, 2, 3), (0.0, 1.0, 0.0, 0.0)),
    "gru": Cell(_gru, 1, (0, 1, 2), (0, 1, 3), (0.0, 0.0, 0.0, 0.0)),
}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrence(update, x: jax.Array, state: State, kernel: jax.Array, bias: jax.Array) -> tuple[State, jax.Array]:
    """Run a cell over time: z_t = [x_t, h_{t-1}] kernel + bias; state_t = update(z_t, state_{t-1}); h_t = state_t[0].

    x: (T, B, D); state: arrays (B, H); kernel: (D + H, n H); bias: (n H,). Returns the last state and every h,
    (T, B, H). All of one dtype.

    The backward pass keeps z and [x, h] of each step and leaves the kernel's gradient to one product after its loop,
    sum_t [x_t, h_{t-1}]^T dL/dz_t, where autodiff would add one up at every step.

    >>> x, h = jnp.ones((3, 2, 1)), jnp.zeros((2, 4))
    >>> (last,), hidden = recurrence(CELLS["rnn"].update, x, (h,), jnp.ones((5, 4)), jnp.zeros(4))
    >>> hidden.shape
    (3, 2, 4)
    """
    return _forward(update, x, state, kernel, bias)[0]


def _forward(update, x, state, kernel, bias):
    def step(state, x):
        xh = jnp.concatenate([x, state[0]], axis=-1)  # (B, D + H)
        z = xh @ kernel + bias[None]  # (B, n H)
        new = update(z, state)
        return new, (new[0], (xh, z, state[1:]))

    last, (hidden, saved) = lax.scan(step, state, x, unroll=_unroll(x, state))
    return (last, hidden), (saved, kernel)


def _backward(update, residuals, cotangents):
    (xh, z, rest), kernel = residuals
    d_last, d_hidden = cotangents
    inputs = kernel.shape[0] - d_hidden.shape[-1]  # D
    transposed = kernel[inputs:].T  # (n H, H), once and not at every step

    def step(d_state, at):
        d_h, xh, z, rest = at
        _, pullback = jax.vjp(update, z, (xh[:, inputs:], *rest))
        d_z, (d_previous, *d_rest) = pullback((d_state[0] + d_h, *d_state[1:]))
        return (d_previous + d_z @ transposed, *d_rest), d_z

    d_state, d_z = lax.scan(step, d_last, (d_hidden, xh, z, rest), reverse=True, unroll=_unroll(z, d_last))
    d_kernel = jnp.tensordot(xh, d_z, axes=((0, 1), (0, 1)))  # (D + H, n H)
    return d_z @ kernel[:inputs].T, d_state, d_kernel, d_z.sum((0, 1))


recurrence.defvjp(_forward, _backward)


def _unroll(x: jax.Array, state: State) -> int:
    """Few steps of a small network cost less than the turns of the loop around them."""
    small = len(x) <= 32 and len(x) * state[0].size <= 2**14
    return len(x) if small else 1


def _spread(kernel: jax.Array, where: tuple[int, ...], blocks: int) -> jax.Array:
    """Put a kernel's blocks of columns at their places among z's, zeros elsewhere."""
    parts = dict(zip(where, jnp.split(kernel, len(where), axis=-1), strict=True))
    zeros = jnp.zeros_like(parts[where[0]])
    return jnp.concatenate([parts.get(block, zeros) for block in range(blocks)], axis=-1)


def _orthogonal(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """An orthogonal matrix for each block of columns."""
    size, columns = shape
    matrices = jax.vmap(lambda key: nn.initializers.orthogonal()(key, (size, size), dtype))
    return jnp.concatenate(list(matrices(jax.random.split(key, columns // size))), axis=1)


class Recurrent(nn.Module):
    """A layer of a recurrent cell, from the state zero: (B, T, D) to every hidden state, (B, T, features).

    Raises UserError for a cell that there is not.

    >>> init = Recurrent(32, cell="gru").init_with_output
    >>> hidden, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((8, 10, 4)))
    >>> hidden.shape
    (8, 10, 32)
    """

    features: int
    cell: str = "lstm"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.cell not in CELLS:
            raise unknown("cell", self.cell, CELLS)
        cell, blocks = CELLS[self.cell], len(CELLS[self.cell].bias)
        batch, _, inputs = x.shape
        input_kernel = self.param(
            "input_kernel", nn.initializers.lecun_normal(), (inputs, len(cell.input) * self.features), jnp.float32
        )
        recurrent_kernel = self.param(
            "recurrent_kernel", _orthogonal, (self.features, len(cell.recurrent) * self.features)
        )
        bias = self.param("bias", lambda key: jnp.repeat(jnp.array(cell.bias, jnp.float32), self.features))
        kernel = jnp.concatenate(
            [_spread(input_kernel, cell.input, blocks), _spread(recurrent_kernel, cell.recurrent, blocks)]
        )  # (D + H, n H)
        x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
        state = (jnp.zeros((batch, self.features), self.dtype),) * cell.states
        _, hidden = recurrence(cell.update, x.swapaxes(0, 1), state, kernel, bias)  # (T, B, H)
        return hidden.swapaxes(0, 1)
