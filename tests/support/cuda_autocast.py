"""CUDA's rules of autocast for a device that brings none of its own (aten/src/ATen/autocast_mode.h)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

# Names of operations, with the overload after a dot.
HALF = """_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input conv_transpose3d.input
convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul
linalg_multi_dot scaled_dot_product_attention"""
FLOAT32 = """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm group_norm norm.Scalar norm.ScalarOpt_dim
frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss
nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist
pdist cdist renorm logsumexp upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d prod
softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm sum sum.dim_IntList"""
WIDEST = "addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put scatter_add tensordot vdot cat stack"

aten = torch.ops.aten
_libraries: list[torch.library.Library] = []  # the rules last as long as these


def register_cuda_autocast(device_type: str) -> None:
    """Give the device of PrivateUse1, which is named `device_type`, the rules of CUDA."""
    every = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    every.fallback(torch.library.fallthrough_kernel)
    own = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    _libraries.extend((every, own))

    def half(_: Sequence[torch.Tensor]) -> torch.dtype:
        return torch.get_autocast_dtype(device_type)

    def float32(_: Sequence[torch.Tensor]) -> torch.dtype:
        return torch.float32

    def widest(given: Sequence[torch.Tensor]) -> torch.dtype | None:
        return torch.float32 if any(tensor.dtype == torch.float32 for tensor in given) else None

    for names, dtype_of in ((HALF, half), (FLOAT32, float32), (WIDEST, widest)):
        for name in names.split():
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(aten, packet, None), overload or "default", None)
            if operation is not None:
                own.impl(name, _cast_to(dtype_of, operation, device_type))


def _cast_to(dtype_of: Callable, operation: Any, device_type: str) -> Callable:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def run(*args: Any, **kwargs: Any) -> Any:
        flat, _ = tree_flatten((args, kwargs))
        dtype = dtype_of([x for x in flat if isinstance(x, torch.Tensor) and x.is_floating_point()])

        def cast(x: Any) -> Any:
            is_float = isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64
            return x.to(dtype) if is_float and x.dtype != dtype and x.device.type == device_type else x

        with torch._C._ExcludeDispatchKeyGuard(keys):
            if dtype is not None:
                args, kwargs = tree_map(cast, args), tree_map(cast, kwargs)
            return operation(*args, **kwargs)

    return run
