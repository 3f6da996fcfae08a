"""The operators written out in torch's own operations, as exported graphs have them."""

from __future__ import annotations

import pytest
import torch

from dtf import ops
from dtf.ops.dispatch import OPERATORS, decompositions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize(
    ("shape", "kernel_size", "dilation"),
    [
        ((2, 3, 4, 5, 7), 3, 1),
        ((1, 2, 1, 4, 3), 3, 1),
        ((2, 2, 5, 6, 4), 5, 1),
        ((1, 1, 2, 2, 1), 5, 2),
        ((3, 4, 2, 3, 4), 1, 1),
    ],
)
def test_plain_forms_equal_the_references(shape, kernel_size, dilation, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    maps = torch.randn(shape[0], kernel_size**2, *shape[2:], generator=generator).to(dtype)
    # The references run in float64; sums in float32 rounded to float16 once are within its last place.
    wide, window = (x.double(), maps.double()), (kernel_size, dilation)
    pairs = [
        (
            OPERATORS["temporal_correlation"].plain(x, *window),
            ops.temporal_correlation(wide[0], *window, backend="reference"),
        ),
        (
            OPERATORS["temporal_aggregation"].plain(x, maps, *window),
            ops.temporal_aggregation(*wide, *window, backend="reference"),
        ),
        *zip(
            OPERATORS["frame_wise_aggregation"].plain(x, *window),
            ops.frame_wise_aggregation(wide[0], *window, backend="reference"),
            strict=True,
        ),
    ]
    for ours, reference in pairs:
        assert ours.dtype == dtype
        assert ours.shape == reference.shape
        tolerance = 1e-12 if dtype == torch.float64 else 2**-10
        assert (ours.double() - reference).abs().max() <= tolerance * reference.abs().max()


class AllThree(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        correlation = ops.temporal_correlation(x)
        enriched, _ = ops.frame_wise_aggregation(x)
        return enriched, ops.temporal_aggregation(x, correlation)


def test_an_exported_graph_needs_this_package_no_more():
    x = torch.randn(2, 4, 3, 5, 6)
    program = torch.export.export(AllThree(), (x,))
    own = [node for node in program.graph.nodes if "dtf" in str(node.target)]
    assert len(own) == 3
    program = program.run_decompositions(decompositions())
    assert not [node for node in program.graph.nodes if "dtf" in str(node.target)]
    torch.testing.assert_close(program.module()(x), AllThree()(x))
