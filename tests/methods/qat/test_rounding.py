"""Rounding is that of PyTorch's and ONNX Runtime's int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType
from torch import Tensor

from autocompress.methods.qat.rounding import round_activations, round_weight


@pytest.mark.parametrize("codes", [64, 127])
@pytest.mark.parametrize(("shape", "dim"), [((6, 10), 0), ((6, 3, 3, 2), 0), ((5, 4, 3), 1)])
def test_weights_are_rounded_as_pytorch_does_for_each_output(
    shape: tuple[int, ...], dim: int, codes: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight.select(dim, 2).zero_()
    greatest = weight.abs().movedim(dim, 0).flatten(1).amax(1)
    scale = torch.where(greatest > 0, greatest / codes, 1.0)
    zeros = torch.zeros(shape[dim])
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zeros, dim, -codes, codes)
    assert torch.allclose(round_weight(weight, dim, codes), expected, rtol=0, atol=1e-6)


def test_codes_of_weights_do_not_change_when_a_batch_norm_is_folded() -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    factor = torch.tensor([0.3, -2.0, 5.0, -0.01])[:, None]
    assert torch.allclose(round_weight(factor * weight, 0), factor * round_weight(weight, 0))


@pytest.mark.parametrize(("low", "high"), [(-1.5, 2.0), (0.5, 3.0), (-2.0, -1.0), (0.0, 0.0)])
def test_activations_are_rounded_as_pytorch_does_over_the_range_of_onnx_runtime(
    low: float, high: float
) -> None:
    values = torch.linspace(-3, 4, 1001)
    least, greatest = get_qmin_qmax_for_qType(QuantType.QUInt8.tensor_type)
    zero, scale = compute_scale_zp(np.float32(low), np.float32(high), least, greatest)
    made = round_activations(values, torch.tensor(low), torch.tensor(high))
    if high == low:
        assert made.abs().max() < 1e-30
        return
    expected = torch.fake_quantize_per_tensor_affine(values, float(scale), int(zero), 0, 255)
    assert torch.allclose(made, expected, rtol=0, atol=1e-6)
    assert 0.0 in made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_pass_where_activations_are_within_the_range(dtype: torch.dtype) -> None:
    values = torch.tensor([-2.0, -0.9, 0.1, 0.9, 2.0], dtype=dtype, requires_grad=True)
    low, high = torch.tensor(-1.0, dtype=dtype), torch.tensor(1.0, dtype=dtype)
    made: Tensor = round_activations(values, low, high)
    made.sum().backward()
    assert made.dtype == dtype
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
