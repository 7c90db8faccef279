import flax.linen as nn
class MLP(nn.Module):
    features: tuple = (128, 128)
    classes: int = 10
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False
    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1)
        for f in self.features:
            x = nn.relu(nn.Dense(f)(x))
        return nn.Dense(self.classes)(x)
