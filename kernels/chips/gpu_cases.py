"""What is compiled for a GPU: attention with its features, layers of convolution and pooling, forward and backward.

JAX is imported where something is compiled: `gpu` starts a process for each case, and needs none itself.
"""

from kernels.chips import gpu

BATCH, LENGTH, HEADS, GROUPS = 2, 4096, 16, 4
ODD = 1001, 777
EVERYTHING = {
    "is_causal": True,
    "local_window_size": 1024,
    "query_seq_lengths": ("int32", (BATCH,)),
    "key_value_seq_lengths": ("int32", (BATCH,)),
    "segment_ids": ("int32", (BATCH, LENGTH)),
    "mask": ("bool", (BATCH, HEADS, LENGTH, LENGTH)),
    "logits_soft_cap": 20.0,
    "bias": ("bfloat16", (1, HEADS, LENGTH, LENGTH)),
    "dropout_rate": 0.1,
}
# Arguments of attention, (dtype, shape) for an array, and what differs from bfloat16, heads of 128 and LENGTH.
ATTENTION = {
    **{
        f"{dtype} {depth}{' causal' * causal}": {"dtype": dtype, "depth": depth, "is_causal": causal}
        for dtype in ("bfloat16", "float32")
        for depth in (64, 128, 256)
        for causal in (False, True)
    },
    "float16": {"dtype": "float16"},
    "depth 32": {"depth": 32},
    "depth 200": {"depth": 200},
    "depth 200 in float32": {"depth": 200, "dtype": "float32"},
    "odd lengths": {"length": ODD[0], "span": ODD[1], "is_causal": True},
    "window": {"is_causal": True, "local_window_size": 1024},
    "lengths": {"query_seq_lengths": ("int32", (BATCH,)), "key_value_seq_lengths": ("int32", (BATCH,))},
    "segments": {"segment_ids": ("int32", (BATCH, LENGTH)), "is_causal": True},
    "mask": {"mask": ("bool", (BATCH, 1, LENGTH, LENGTH))},
    "bias": {"bias": ("bfloat16", (1, HEADS, LENGTH, LENGTH))},
    "bias of heads": {"bias": ("float32", (HEADS, 1, 1))},
    "bias of keys": {"bias": ("float32", (BATCH, 1, 1, LENGTH))},
    "soft cap": {"logits_soft_cap": 20.0},
    "dropout": {"dropout_rate": 0.1},
    "odd lengths, segments, mask, bias": {
        "length": ODD[0],
        "span": ODD[1],
        "segment_ids": ("int32", (BATCH, ODD[0])),
        "key_value_segment_ids": ("int32", (BATCH, ODD[1])),
        "mask": ("bool", (BATCH, HEADS, *ODD)),
        "bias": ("bfloat16", (1, HEADS, *ODD)),
    },
    "everything": EVERYTHING,
    "everything 64": EVERYTHING | {"depth": 64},
}
RESNET = {  # ResNet-50 on batches of 32: (size, channels, features, kernel, strides)
    "first 7x7": (224, 3, 64, 7, 2),
    "3x3": (56, 64, 64, 3, 1),
    "3x3 of 14": (14, 256, 256, 3, 1),
    "3x3 of 7": (7, 512, 512, 3, 1),
    "3x3 stride 2": (56, 128, 128, 3, 2),
    "1x1": (56, 64, 256, 1, 1),
    "1x1 shortcut": (56, 256, 512, 1, 2),
}
# Arguments of a convolution: x, w, strides and groups; what follows it; and what differs from bfloat16.
IMAGES = 32
VECTORS = "bias", "scale", "shift"
CONVOLUTION = {
    **{
        f"ResNet-50 {name}{' ' * bool(follow)}{follow}{' in float32' * (dtype == 'float32')}": {
            "x": (IMAGES, size, size, channels),
            "w": (kernel, kernel, channels, features),
            "strides": strides,
            "follow": follow,
            "dtype": dtype,
        }
        for name, (size, channels, features, kernel, strides) in RESNET.items()
        for follow, dtype in (
            ("bias relu", "bfloat16"),
            *(
                [("bias scale shift residual gelu", "bfloat16"), ("", "float32")]
                if name in ("3x3 of 14", "1x1")
                else []
            ),
        )
    },
    "groups": {"x": (IMAGES, 28, 28, 256), "w": (3, 3, 128, 256), "groups": 2},
    "dilation": {"x": (IMAGES, 28, 28, 128), "w": (3, 3, 128, 128), "dilation": 2},
    **{
        f"depthwise {name}": {"x": (IMAGES, *size, channels), "w": (*kernel, 1, channels), "groups": channels, **more}
        for name, size, channels, kernel, more in (
            ("3x3", (56, 56), 128, (3, 3), {"follow": "bias relu"}),
            ("3x3 stride 2", (56, 56), 128, (3, 3), {"strides": 2}),
            ("3x3 dilation 2", (56, 56), 128, (3, 3), {"dilation": 2}),
            ("7x7", (56, 56), 96, (7, 7), {"follow": "bias scale shift residual gelu"}),
            ("7x7 in float32", (28, 28), 192, (7, 7), {"dtype": "float32"}),
        )
    },
}
POOLING = {
    f"{kind} {window}x{window} stride {strides}{' in float32' * (dtype == 'float32')}": {
        "kind": kind,
        "x": (IMAGES, size, size, 64),
        "window": window,
        "strides": strides,
        "padding": padding,
        "dtype": dtype,
    }
    for kind, size, window, strides, padding, dtype in (
        ("max", 112, 3, 2, 1, "bfloat16"),
        ("max", 112, 3, 2, 1, "float32"),
        ("max", 56, 2, 2, 0, "bfloat16"),
        ("sum", 112, 3, 2, 1, "bfloat16"),
        ("sum", 28, 7, 1, 0, "bfloat16"),
    )
}


def _shapes():
    """What makes a ShapeDtypeStruct of a dtype and shape on the chip."""
    import jax
    from jax.experimental import topologies

    there = topologies.get_topology_desc("", "cuda", target_config=gpu.TARGET, topology="1x1x1").devices[0]
    return lambda dtype, shape: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.SingleDeviceSharding(there))


def _compile(function, *arrays):
    import jax

    device = jax.sharding.AbstractDevice(device_kind=gpu.CHIP, platform="gpu", num_cores=gpu.CORES)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        jax.jit(function).lower(*arrays).compile()


def _compile_attention(asked):
    """Compile attention's value and all its gradients."""
    import jax
    import jax.numpy as jnp

    from kernels.attention import attention

    asked = dict(asked)
    dtype, depth = asked.pop("dtype", "bfloat16"), asked.pop("depth", 128)
    length, span = asked.pop("length", LENGTH), asked.pop("span", LENGTH)
    shape = _shapes()
    arrays = {name: shape(*asked.pop(name)) for name, x in list(asked.items()) if isinstance(x, tuple)}
    sizes = (length, HEADS), (span, GROUPS), (span, GROUPS)
    learned = [shape(dtype, (BATCH, *size, depth)) for size in sizes]
    learned += [arrays.pop("bias")] if "bias" in arrays else []
    asked |= {"dropout_rng": jax.random.key(0)} if "dropout_rate" in asked else {}

    def loss(learned, arrays):
        out, lse = attention(*learned, **arrays, **asked, return_residual=True, implementation="hopper")
        return out.astype(jnp.float32).sum() + lse.sum()

    _compile(jax.value_and_grad(loss), learned, arrays)


def _compile_convolution(asked):
    """Compile a convolution, with what follows it, and the gradients of everything."""
    import jax

    from kernels.convolution import convolution
    from kernels.convolution.windows import geometry

    x, w, dtype, follow = asked["x"], asked["w"], asked.get("dtype", "bfloat16"), asked.get("follow", "").split()
    options = {name: asked.get(name, 1) for name in ("strides", "dilation", "groups")}
    window = geometry(x[1:3], w[:2], padding="SAME", **options)
    shape = _shapes()
    output = (x[0], *window.output(x[1:3], w[:2]), w[3])
    given = {name: shape(dtype, w[3:]) for name in VECTORS if name in follow}
    given |= {"residual": shape(dtype, output)} if "residual" in follow else {}
    options |= {"activation": follow[-1] if follow else None, "implementation": "hopper"}

    def everything(x, w, given, dy):
        y, pull = jax.vjp(lambda x, w, given: convolution(x, w, **given, **options), x, w, given)
        return y, pull(dy)

    _compile(everything, shape(dtype, x), shape(dtype, w), given, shape(dtype, output))


def _compile_pooling(asked):
    """Compile a pooling and its gradient."""
    import jax

    from kernels.pooling import average_pool, max_pool

    pool, shape, x = (max_pool if asked["kind"] == "max" else average_pool), _shapes(), asked["x"]
    call = lambda x: pool(x, asked["window"], asked["strides"], asked["padding"], "hopper")  # noqa: E731
    x = shape(asked["dtype"], x)

    def everything(x, dy):
        y, pull = jax.vjp(call, x)
        return y, pull(dy)

    output = jax.eval_shape(lambda x: pool(x, asked["window"], asked["strides"], asked["padding"]), x).shape
    _compile(everything, x, shape(asked["dtype"], output))


# How each subject is compiled, and its cases.
CASES = {
    "attention": (_compile_attention, ATTENTION),
    "convolution": (_compile_convolution, CONVOLUTION),
    "pooling": (_compile_pooling, POOLING),
}
