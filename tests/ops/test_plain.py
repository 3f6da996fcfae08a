"""The operators written out in torch's own operations, as exported graphs have them."""

from __future__ import annotations

import pytest
import torch
from operator_samples import SAMPLES
from torch.fx.experimental.proxy_tensor import make_fx

from dtf.ops.dispatch import OPERATORS, decompositions


@pytest.mark.parametrize("op", SAMPLES, ids=lambda op: op.__name__)
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
def test_plain_forms_equal_the_references(shape, kernel_size, dilation, dtype, op):
    tensors = op.tensors(shape, kernel_size, dtype)
    # The references run in float64; sums in float32 rounded to float16 once are within its last place.
    references = op(*(value.double() for value in tensors), kernel_size, dilation, backend="reference")
    ours = OPERATORS[op.operator].plain(*tensors, kernel_size, dilation, *op.more)
    for one, reference in zip(ours if isinstance(ours, tuple) else (ours,), references, strict=True):
        assert one.dtype == dtype
        assert one.shape == reference.shape
        tolerance = 1e-12 if dtype == torch.float64 else 2**-10
        assert (one.double() - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize(
    "op", [op for op in SAMPLES if "deformable" in op.operator], ids=lambda op: op.__name__
)
def test_graphs_of_deformed_samples_are_small(op):
    """Exporters take minutes where each corner of a sample has nodes of its own."""
    tensors = op.tensors((1, 4, 2, 5, 6), 3, torch.float32)
    graph = make_fx(lambda *given: OPERATORS[op.operator].plain(*given, 3, 1, *op.more))(*tensors).graph
    assert len(graph.nodes) <= 12 * 9 + 60


class AllOfThem(torch.nn.Module):
    def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        results, left = [], list(tensors)
        for op in SAMPLES:
            count = len(op.shapes((1, 1, 1, 1, 1), 1))
            results += op(*left[:count], 3, 1, backend="auto")
            del left[:count]
        return results


@pytest.mark.slow
def test_an_exported_graph_needs_this_package_no_more():
    tensors = tuple(value for op in SAMPLES for value in op.tensors((2, 4, 3, 5, 6), 3, torch.float32))
    program = torch.export.export(AllOfThem(), tensors)
    own = [node for node in program.graph.nodes if "dtf" in str(node.target)]
    assert len(own) == len(SAMPLES)
    program = program.run_decompositions(decompositions())
    assert not [node for node in program.graph.nodes if "dtf" in str(node.target)]
    torch.testing.assert_close(program.module()(*tensors), AllOfThem()(*tensors))
