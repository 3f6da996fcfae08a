"""Gradient checkpointing: the same step, dropout and batch norm statistics too, with blocks run twice."""

from __future__ import annotations

import copy

import pytest
import torch
from pocket import TADAFORMER
from torch import nn

from dtf.models import create_model
from dtf.models.network import VideoNetwork

SWIN = {"image_size": 32, "embed_dim": 12, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2}
RESNET = {"widths": [8, 8, 16, 16], "stem_width": 8, "layers": [1, 2, 1, 1]}
NETWORKS = {
    "dtf_tiny": RESNET | {"filter_groups": 8},
    "c2d_tiny": RESNET,
    "ddf_tiny": RESNET,
    "sifa_tiny": RESNET,
    "sifa_resnet50": {"widths": [8, 8, 16, 16], "layers": [1, 2, 1, 2]},
    "sifa_swin_small": SWIN,
    "tada_tiny": RESNET,
    "dtf_swin_tiny": SWIN | {"filter_groups": 1},
    "c2d_swin_tiny": SWIN,
    "tadaconvnextv2_tiny": {"widths": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "head_dim": 2},
    "tadaformer_base": TADAFORMER,
}


def build(name: str) -> VideoNetwork:
    torch.manual_seed(0)
    network = create_model(
        name,
        num_classes=3,
        clip_length=4,
        temporal_stride=1,
        dropout=0.3,
        drop_path_rate=0.5,
        **NETWORKS[name],
    )
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.endswith("alpha"):
            nn.init.normal_(parameter)  # a fresh filter is the identity
    return network


def step(network: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(1)
    logits = network(torch.randn(2, 3, 4, 32, 32))
    logits.square().mean().backward()
    return logits.detach(), [p.grad for p in network.parameters()]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_step_is_the_same(name: str) -> None:
    plain = build(name)
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    block = next(m for m in checkpointed.modules() if type(m).__name__.endswith(("Block", "Bottleneck")))
    calls = []
    block.register_forward_pre_hook(lambda *args: calls.append(1))
    a, b = step(plain), step(checkpointed)
    assert len(calls) == 2, "once forward, once backward"
    torch.testing.assert_close(b, a, rtol=0, atol=0)
    # Running means and variances, and how many batches they have seen.
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    if "swin" not in name and "convnext" not in name:
        counts = [v for k, v in checkpointed.state_dict().items() if k.endswith("num_batches_tracked")]
        assert counts
        assert all(count == 1 for count in counts)


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(network: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = network(torch.randn(2, 3, 4, 32, 32))
        assert logits.requires_grad
        return sum(sizes.values())

    network = build("dtf_tiny")
    everything = kept(network)
    network.set_grad_checkpointing()
    assert kept(network) < everything / 2


def test_only_training_pays() -> None:
    network = build("dtf_tiny")
    network.set_grad_checkpointing()
    network.eval()
    calls = []
    network.backbone.layer1[0].register_forward_pre_hook(lambda *args: calls.append(1))
    network(torch.randn(2, 3, 4, 32, 32)).sum().backward()
    assert len(calls) == 1


def test_it_can_be_switched_off() -> None:
    network = build("dtf_tiny")
    network.set_grad_checkpointing()
    network.set_grad_checkpointing(False)
    calls = []
    network.backbone.layer1[0].register_forward_pre_hook(lambda *args: calls.append(1))
    step(network)
    assert len(calls) == 1


@pytest.mark.slow
def test_with_the_compiler() -> None:
    plain = build("c2d_tiny")
    for module in plain.modules():
        # What is random differs between eager and compiled anyway.
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    plain.dropout = 0.0
    compiled = copy.deepcopy(plain)
    compiled.set_grad_checkpointing()
    torch._dynamo.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    a, b = step(plain), step(compiled)
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-7)
