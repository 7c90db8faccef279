"""Conv (stand-in)."""
import flax.linen as nn
import jax.numpy as jnp
from kernels.convolution import convolution
class Conv(nn.Module):
    features: int
    kernel_size: tuple = (3, 3)
    strides: int = 1
    padding: str = "SAME"
    use_bias: bool = True
    dtype: str = "float32"
    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", nn.initializers.lecun_normal(), (*self.kernel_size, x.shape[-1], self.features))
        b = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
        dt = jnp.dtype(self.dtype)
        return convolution(x.astype(dt), w.astype(dt), None if b is None else b.astype(dt), strides=self.strides, padding=self.padding)
