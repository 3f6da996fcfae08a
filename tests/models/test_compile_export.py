"""torch.compile without graph breaks, state dicts that keep their names, torch.export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pocket import TADAFORMER

from dtf.models import DTFBlock, create_model

pytestmark = pytest.mark.slow  # compiles networks

NETWORKS = {
    "dtf_tiny": {"clip_length": 4, "widths": (8, 8, 8, 8)},
    "dtf_resnet50": {"clip_length": 8, "layers": (1, 1, 1, 1), "widths": (8, 8, 8, 8)},
    "ddf_mul_resnet50": {"clip_length": 2, "layers": (1, 1, 1, 1), "widths": (8, 8, 8, 8)},
    "sifa_resnet50": {"clip_length": 8, "layers": (1, 2, 1, 2), "widths": (8, 8, 8, 8)},
    "tada2d_resnet50": {"clip_length": 2, "layers": (1, 1, 1, 1), "widths": (8, 8, 8, 8)},
    "tadaconvnextv2_tiny": {"clip_length": 4, "depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8), "head_dim": 2},
    "tadaformer_base": TADAFORMER | {"clip_length": 4, "double": True},
    "dtf_swin_tiny": {
        "clip_length": 8,
        "image_size": 32,
        "window_size": 2,
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 2),
    },
}


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    arguments = NETWORKS[name]
    model = create_model(name, num_classes=5, **arguments)
    for block in model.modules():
        if isinstance(block, DTFBlock):
            torch.nn.init.normal_(block.alpha)  # no identity, so that every path counts
    return model, torch.randn(2, 3, arguments["clip_length"], 32, 32)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("frames", [4, 5])
def test_block_compiles_whole(frames: int, autocast: bool) -> None:
    torch.manual_seed(0)
    block = DTFBlock(16, frames)
    torch.nn.init.normal_(block.alpha)
    x = torch.randn(2, 16, frames, 5, 6, requires_grad=True)
    results = []
    for module in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = module(x.bfloat16() if autocast else x)
        results.append((y, *torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()])))
    # Sums are taken in another order, of bfloat16 values under autocast.
    tolerance = 2**-6 if autocast else 1e-5
    for eager, compiled in zip(*results, strict=True):
        assert (compiled - eager).abs().max() <= tolerance * eager.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compile_whole_and_keep_their_names(name: str) -> None:
    model, video = network(name)
    names = list(model.state_dict())
    model.eval()
    eager = model(video)
    model.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(video), eager)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_export(name: str) -> None:
    model, video = network(name)
    model.eval()
    exported = torch.export.export(model, (video,))
    torch.testing.assert_close(exported.module()(video), model(video))
