r"""Names of functions of torch, without the underscores around them, by what they do to the entries of a tensor."""

from __future__ import annotations

JOINING = ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack")
CASTS = ("to", "type", "float", "double", "half", "bfloat16", "type_as", "cpu", "cuda", "requires_grad", "detach")
MOVEMENT = frozenset(
    (
        *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "permute", "transpose", "t", "swapaxes"),
        *("swapdims", "movedim", "moveaxis", "contiguous", "clone", "expand", "expand_as", "broadcast_to", "repeat"),
        *("tile", "repeat_interleave", "roll", "flip", "fliplr", "flipud", "rot90", "getitem", "narrow", "select"),
        *("index_select", "gather", "take_along_dim", "split", "split_with_sizes", "chunk", "tensor_split", "unbind"),
        *("squeeze", "unsqueeze", "pad", "unfold", "im2col", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
        *("diagonal", "as_strided", "get", "alias", "hsplit", "vsplit", "dsplit", "unsafe_chunk", "unsafe_split"),
        *("constant_pad_nd", "identity", "resolve_conj", "pin_memory", "view_copy", "atleast_2d", "atleast_3d"),
    )
)
# Of these, what leaves no entry out.
REARRANGING = frozenset(
    (
        *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "permute", "transpose", "t", "mT"),
        *("contiguous", "clone", "expand", "expand_as", "movedim", "squeeze", "unsqueeze", "roll", "repeat"),
    )
)
POINTWISE = frozenset(
    (
        *CASTS,
        *("add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "truediv", "rdiv"),
        *("radd", "rmul", "rtruediv", "iadd", "isub", "imul", "idiv", "itruediv", "floor_divide", "pow", "rpow"),
        *("neg", "negative", "positive", "abs", "absolute", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt"),
        *("rsqrt", "sigmoid", "logsigmoid", "tanh", "relu", "relu6", "gelu", "silu", "mish", "elu", "celu", "selu"),
        *("leaky_relu", "hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign", "threshold", "erf", "sin"),
        *("cos", "atan", "arctan", "clamp", "clip", "clamp_min", "clamp_max", "minimum", "maximum", "where", "lerp"),
        *("masked_fill", "addcmul", "addcdiv", "sign", "square", "reciprocal", "dropout", "alpha_dropout", "round"),
        *("nan_to_num", "floor", "ceil", "hypot", "fmod", "remainder", "eq", "ne", "gt", "ge", "lt", "le", "prelu"),
        *("fill_like", "tanhshrink", "softshrink", "hardshrink", "xlogy", "float_power", "logical_not", "sgn"),
    )
)
# Of sums over axes, where the argument of the axes stands.
REDUCTIONS = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "nanmean", "nansum", "prod"), 1),
    **dict.fromkeys(("max", "min", "median", "all", "any", "count_nonzero"), 1),
    **dict.fromkeys(("norm", "linalg_vector_norm", "linalg_norm", "renorm"), 2),
}
# Of what keeps its shape, but mixes entries along axes.
ALONG = {"softmax": 1, "log_softmax": 1, "softmin": 1, "normalize": 2}
# Of what depends on the order along an axis, where the argument of the axis stands, and what it is if there is none.
CHOOSING: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("argmax", "argmin"), (1, None)),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp"), (1, None)),
    **dict.fromkeys(("sort", "argsort"), (1, -1)),
    **dict.fromkeys(("topk", "kthvalue"), (2, -1)),
}
PRODUCTS = ("matmul", "rmatmul", "bmm", "mm", "einsum", "mv", "inner")
MAPS = frozenset(
    (
        *("interpolate", "upsample", "avg_pool2d", "max_pool2d", "lp_pool2d", "adaptive_avg_pool2d"),
        *("adaptive_max_pool2d", "max_pool2d_with_indices", "upsample_bilinear", "upsample_nearest"),
        *("adaptive_avg_pool1d", "adaptive_max_pool1d"),
    )
)
NORMS = ("layer_norm", "rms_norm", "native_layer_norm")
SUMS = ("baddbmm", "addmm")
# What makes no tensor of one, but numbers that python goes on with.
DECIDING = frozenset(
    (
        *("item", "tolist", "numpy", "array", "bool", "float", "int", "index", "complex", "contains"),
        *("equal", "allclose", "is_nonzero"),
    )
)
