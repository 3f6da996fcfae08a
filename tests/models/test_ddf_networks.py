"""DDF networks: golden logits and gradients through the conversion, images and clips, their first weights."""

from __future__ import annotations

from pathlib import Path

import golden_files
import pytest
import torch
from golden_files import original_state, stored
from torch import Tensor, nn

from dtf.layers import DDFPack, layer_maps, temporal_layers
from dtf.models import VideoNetwork, convert_original_state_dict, create_model

GOLDEN = golden_files.GOLDEN / "ddf"
FILES = sorted(GOLDEN.glob("model_*.npz"))
SMALL = {"layers": [1, 1, 1, 1], "widths": [8, 8, 16, 16], "num_classes": 3}


def original(path: Path) -> dict[str, Tensor]:
    """One network has files for inputs of several sizes."""
    return original_state(GOLDEN / f"{path.stem.rsplit('_', 1)[0]}.state.json")


def seeded(shape: list[int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_networks(path: Path) -> None:
    values, meta = stored(path)
    model = create_model(meta["model"], clip_length=1, **meta["kwargs"])
    assert sum(p.numel() for p in model.parameters()) == meta["params"]
    state, report = convert_original_state_dict(original(path), model)
    assert not report.dead
    assert len(report.converted) == len(state) == len(model.state_dict())
    model.load_state_dict(state, strict=True)
    model.double().eval()
    taps: dict[str, Tensor] = {}
    names = [key.removeprefix("tap_").removesuffix("_sample") for key in values if key.startswith("tap_")]
    for name in names:
        if name != "global_pool":
            module = model.backbone.get_submodule(name)
            module.register_forward_hook(lambda m, args, out, name=name: taps.update({name: out}))
    x = seeded(meta["input_shape"], meta["input_seed"]).requires_grad_()
    logits = model(x)
    for name, out in taps.items():
        # Folded frames are (B, C, H, W), a layer's own output has its one frame.
        flat = out.detach().contiguous().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64]
        torch.testing.assert_close(sample, values[f"tap_{name}_sample"], rtol=1e-7, atol=1e-9, msg=name)
    error = (logits.detach() - values["logits"]).abs().max()
    assert error <= 1e-7 * values["logits"].abs().max()
    if "grad_x_sample" in values:
        weight = seeded(list(logits.shape), meta["grad_weight_seed"])
        (grad,) = torch.autograd.grad((logits * weight).sum(), x)
        assert grad.norm().item() == pytest.approx(values["grad_x_norm"].item(), rel=1e-7)
        sample = grad.contiguous().flatten()[:: max(1, grad.numel() // 256)][:256]
        assert (sample - values["grad_x_sample"]).abs().max() <= 1e-7 * values["grad_x_sample"].abs().max()
    with torch.inference_mode():
        narrow = model.float()(x.detach().float())
    assert (narrow - values["logits"]).abs().max() <= 1e-4 * values["logits"].abs().max()


def test_the_golden_networks_are_there():
    assert len(FILES) == 4


@pytest.mark.parametrize(("depth", "count"), [(50, 16_843_748), (101, 28_146_912), (152, 37_462_900)])
def test_published_sizes(depth: int, count: int) -> None:
    with torch.device("meta"):
        model = create_model(f"ddf_mul_resnet{depth}", num_classes=1000, clip_length=1)
    assert sum(p.numel() for p in model.parameters()) == count


def test_conversion_is_strict_and_takes_layers_too() -> None:
    layer = DDFPack(10)
    state, _ = convert_original_state_dict(layer.state_dict(), DDFPack(10))
    assert list(state) == list(layer.state_dict())
    entries = original(FILES[0])
    model = create_model("ddf_add_resnet50", num_classes=10, clip_length=1)
    del entries["layer1.0.conv2.channel_branch.4.std"]
    entries["layer1.0.conv2.weight"] = torch.zeros(64, 64, 3, 3)
    with pytest.raises(ValueError, match=r"unknown entry layer1\.0\.conv2\.weight.*nothing for backb"):
        convert_original_state_dict(entries, model)


def small(name: str, **more: object) -> VideoNetwork:
    torch.manual_seed(0)
    model = create_model(name, **SMALL, **more).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def test_a_clip_is_the_mean_of_its_frames() -> None:
    frames = small("ddf_mul_resnet50", clip_length=1)
    clips = small("ddf_mul_resnet50", clip_length=3)
    video = torch.randn(2, 3, 3, 40, 33)
    together = clips(video)
    alone = torch.stack([frames(video[:, :, t]) for t in range(3)]).mean(dim=0)
    torch.testing.assert_close(together, alone)
    shared = small("ddf_mul_resnet50", clip_length=3, clip_filter=True)
    assert (shared(video) - together).abs().max() > 1e-4
    # Three times the same frame are that frame.
    still = video[:, :, :1].expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(shared(still), frames(video[:, :, 0]))


def test_dynamic_filters_stand_for_every_3x3_convolution() -> None:
    model = create_model("ddf_mul_resnet50", clip_length=1)
    layers = temporal_layers(model)
    assert len(layers) == 16
    assert all(name.endswith(".conv2") for name in layers)
    assert [layer.stride for layer in layers.values()].count(2) == 3
    assert not any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules() if m is not model
    )


def test_a_fresh_network_is_drawn_as_the_published_one() -> None:
    torch.manual_seed(0)
    model = create_model("ddf_mul_resnet50", num_classes=10, clip_length=1)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            wanted = 0.0 if name.endswith("bn3") else 1.0
            assert (module.weight == wanted).all(), name
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.out_channels * module.weight[0, 0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name


def test_weights_of_the_image_network_start_a_network_of_clips(tmp_path: Path) -> None:
    image = small("ddf_mul_resnet50", clip_length=1)
    path = tmp_path / "image.pth"
    torch.save({k.removeprefix("backbone."): v for k, v in image.state_dict().items()}, path)
    arguments = SMALL | {"num_classes": 7}
    model = create_model("ddf_mul_resnet50", clip_length=2, pretrained=str(path), **arguments)
    for name, value in image.state_dict().items():
        if not name.startswith("backbone.fc"):
            assert torch.equal(model.state_dict()[name], value), name
    # Those of an ordinary ResNet have no dynamic filters.
    state = {k: v for k, v in torch.load(path).items() if ".conv2." not in k}
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"missing layer1\.0\.conv2\.spatial_branch\.0\.weight"):
        create_model("ddf_mul_resnet50", clip_length=2, pretrained=str(path), **arguments)


def test_every_layer_explains_itself() -> None:
    model = small("ddf_mul_resnet50", clip_length=2)
    found = layer_maps(model, torch.randn(1, 3, 2, 64, 64))
    assert list(found) == [f"backbone.layer{stage}.0.conv2" for stage in range(1, 5)]
    assert found["backbone.layer2.0.conv2"].values.shape == (1, 9, 8, 8)
