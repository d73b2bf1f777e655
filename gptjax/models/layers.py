"""The small parts every model is built from: parameters with named axes, linear maps, norms, dropout.

Legend: B batch, L length, D model width, I inputs, O outputs, V vocabulary.

Each `nnx.Param` carries `axes`, the logical name of each of its dimensions. Shardings, weight-decay
masks and checkpoint maps are derived from that one declaration (`models/functional.py`).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.models.matmul import AdaptedMatrix, TransposedMatrix, matmul
from gptjax.models.quantization import QuantizedMatrix, dequantize_after


def normal_param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param:
    """A parameter drawn from N(0, std^2), float32, with one logical axis name per dimension."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def constant_param(shape: tuple[int, ...], axes: tuple[str, ...], value: float) -> nnx.Param:
    """A parameter filled with one value, float32, with one logical axis name per dimension."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


class Linear(nnx.Module):
    """`y = x W + b` with operands in `dtype` and a float32 result; W may be quantised, or adapted.

    W starts from N(0, (gain std)^2); a std of None is Xavier's, `sqrt(2 / (I + O))` (Glorot and Bengio 2010).
    """

    def __init__(self, inputs, outputs, *, axes, std, bias, dtype, rngs, gain=1.0):
        self.dtype = dtype
        std = (2 / (inputs + outputs)) ** 0.5 if std is None else std
        self.kernel = normal_param(rngs, (inputs, outputs), axes, gain * std)
        self.bias = constant_param((outputs,), axes[1:], 0.0) if bias else None

    def __call__(self, x_BxLxI: jax.Array) -> jax.Array:
        kernel_IxO = self.kernel.get_value()
        if isinstance(kernel_IxO, AdaptedMatrix):
            return self._after(x_BxLxI, kernel_IxO.weight) + kernel_IxO.change(x_BxLxI, self.dtype)
        return self._after(x_BxLxI, kernel_IxO)

    def _after(self, x_BxLxI: jax.Array, kernel_IxO) -> jax.Array:
        if isinstance(kernel_IxO, QuantizedMatrix):
            kernel_IxO = dequantize_after(x_BxLxI, kernel_IxO)
        if isinstance(kernel_IxO, TransposedMatrix):
            y_BxLxO = kernel_IxO.after(x_BxLxI, self.dtype)
        else:
            y_BxLxO = matmul(x_BxLxI, kernel_IxO, self.dtype)
        return y_BxLxO if self.bias is None else y_BxLxO + self.bias[...]


class LayerNorm(nnx.Module):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` over the last axis.

    Statistics are float32: a bfloat16 mean of a thousand squares keeps only two or three digits.
    """

    def __init__(self, width, epsilon, *, bias=True):
        self.epsilon = epsilon
        self.scale = constant_param((width,), ("norm",), 1.0)
        self.bias = constant_param((width,), ("norm",), 0.0) if bias else None

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        x = x_BxLxD.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * self.scale[...]
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + epsilon) * scale` over the last axis (Zhang and Sennrich 2019), in float32."""

    def __init__(self, width, epsilon):
        self.epsilon = epsilon
        self.scale = constant_param((width,), ("norm",), 1.0)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        x = x_BxLxD.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * self.scale[...]


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest by `1 / (1 - rate)`.

    Without a key (evaluation, sampling) or with rate 0 the input comes back unchanged.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)
