"""The check that surgery left outputs as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ProofError
from autocompress.surgery import check_equal


class Watching(nn.Linear):
    """Notes how precisely convolutions and products are computed when it is called."""

    seen: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        backends = torch.backends
        self.seen = (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision)
        return super().forward(x)


def test_outputs_are_compared_in_full_single_precision_and_the_users_setting_comes_back() -> None:
    first, second = Watching(3, 2), Watching(3, 2)
    second.load_state_dict(first.state_dict())
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        assert check_equal(first, second, torch.randn(4, 3), "nothing") == 0
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert first.seen == second.seen == ("ieee", "ieee")


def test_other_outputs_are_refused_with_how_far_they_are() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        second.bias += 0.5
    with pytest.raises(ProofError, match=r"^this must leave outputs as they are to 0.0001 but changes \d"):
        check_equal(second, first, torch.zeros(2, 3), "this")
