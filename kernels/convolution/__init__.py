import functools
import jax, jax.numpy as jnp
from jax import lax
from kernels.convolution import reference, xla
from kernels.convolution.geometry import Geometry, pair, resolve
def _lax(x,w,geometry):
    return lax.conv_general_dilated(x,w,geometry.strides,geometry.padding,rhs_dilation=geometry.dilation,feature_group_count=geometry.groups,dimension_numbers=("NHWC","HWIO","NHWC"))
def convolution(x, w, bias=None, *, strides=1, padding="SAME", dilation=1, groups=1, implementation=None):
    strides, dilation = pair("strides", strides), pair("dilation", dilation)
    g = Geometry(strides, resolve(padding, x.shape[1:3], w.shape[:2], strides, dilation), dilation, groups)
    if implementation is None:
        y=lax.platform_dependent(x,w,cpu=functools.partial(xla.convolution,geometry=g),default=functools.partial(_lax,geometry=g))
    else:
        y={'reference':reference.convolution,'xla':xla.convolution,'lax':_lax}[implementation](x,w,g)
    return y if bias is None else y+bias[None,None,None]
