"""Networks of PyTorchVideo's zoo: the same function as the originals, in this package's interface."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from torch import nn

from dtf.models import create_model, list_models, load_weights, save_weights
from dtf.models.pytorchvideo import _import

# Published with the weights, in millions (PyTorchVideo's model zoo); that of ptv_x3d_tiny is ours.
PARAMETERS = {
    "ptv_csn_r101": 22.21,
    "ptv_mvit_b": 36.61,
    "ptv_r2plus1d_r50": 28.11,
    "ptv_slow_r50": 32.45,
    "ptv_slowfast_r50": 34.57,
    "ptv_x3d_m": 3.79,
    "ptv_x3d_s": 3.79,
    "ptv_x3d_tiny": 1.43,
}
NAMES = sorted(PARAMETERS)
PUBLISHED = [name for name in NAMES if name != "ptv_x3d_tiny"]
SMALL: dict[str, dict[str, Any]] = {
    "ptv_csn_r101": {"depth": 50, "width": 8},
    "ptv_mvit_b": {"embed_dim": 8, "depths": [1, 1, 2], "image_size": 32},
    "ptv_r2plus1d_r50": {"width": 8},
    "ptv_slow_r50": {"width": 8},
    "ptv_slowfast_r50": {"width": 8, "depth": 18},
    "ptv_x3d_m": {"width_factor": 1, "depth_factor": 0.5},
    "ptv_x3d_s": {"width_factor": 0.7, "depth_factor": 0.5},
    "ptv_x3d_tiny": {},
}
# PyTorchVideo's own function, what makes it small, its clip (frames, side), and the same in our words.
X3D = {"width_factor": 1.0, "depth_factor": 0.5}
ORIGINALS: dict[str, tuple[str, dict[str, Any], tuple[int, int], dict[str, Any]]] = {
    "ptv_csn_r101": ("csn_r101", {"stem_dim_out": 4}, (32, 224), {"width": 4}),
    "ptv_mvit_b": ("mvit_base_16x4", {"patch_embed_dim": 8}, (16, 224), {"embed_dim": 8}),
    "ptv_r2plus1d_r50": ("r2plus1d_r50", {"stem_dim_out": 4}, (16, 224), {"width": 4}),
    "ptv_slow_r50": ("slow_r50", {"stem_dim_out": 8}, (8, 224), {"width": 8}),
    "ptv_slowfast_r50": ("slowfast_r50", {"stem_dim_outs": (8, 1)}, (32, 224), {"width": 8}),
    "ptv_x3d_m": ("x3d_m", X3D, (16, 224), X3D),
    "ptv_x3d_s": ("x3d_s", X3D, (13, 160), X3D),
}
SOFTMAX = ("ptv_r2plus1d_r50", "ptv_x3d_m", "ptv_x3d_s")


def small(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, **{"num_classes": 5, "clip_length": 8, **SMALL[name], **more})


def original(name: str, num_classes: int = 5) -> nn.Module:
    """PyTorchVideo's own network, with weights and statistics that leave nothing at zero or one."""
    function, arguments, _, _ = ORIGINALS[name]
    torch.manual_seed(2)
    key = "head_num_classes" if "mvit" in name else "model_num_class"
    network = getattr(_import("pytorchvideo.models.hub"), function)(**arguments, **{key: num_classes})
    awaken(network)
    return network.eval()


def awaken(network: nn.Module) -> None:
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def test_names():
    assert [name for name in list_models() if name.startswith("ptv_")] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_published_sizes(name):
    with torch.device("meta"):
        model = create_model(name)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.005)


@pytest.mark.parametrize("name", quick(PUBLISHED, "ptv_r2plus1d_r50", "ptv_x3d_s"))
@torch.no_grad()
def test_the_function_is_that_of_the_original_at_its_own_clip(name):
    reference = original(name)
    _, _, (frames, side), arguments = ORIGINALS[name]
    model = create_model(name, num_classes=5, clip_length=frames, **arguments).eval()
    model.backbone.load_state_dict(reference.state_dict())
    video = torch.randn(1, 3, frames, side, side)
    given: Any = video
    if "slowfast" in name:
        # What PyTorchVideo's documentation tells its users to do with a clip.
        picked = torch.linspace(0, frames - 1, frames // 4).long()
        given = [torch.index_select(video, 2, picked), video.clone()]
    expected, logits = reference(given), model(video)
    assert (expected.sum() - 1).abs() < 1e-5 or name not in SOFTMAX
    torch.testing.assert_close(
        logits.softmax(1) if name in SOFTMAX else logits, expected, rtol=1e-4, atol=1e-5
    )
    assert logits.std() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_reach_every_parameter(name):
    model = small(name, dropout=0.0, **({"drop_path_rate": 0.0} if "mvit" in name else {}))
    awaken(model)
    logits = model.train()(torch.randn(3, 3, 8, 32, 32))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of the keys moves no softmax.
    assert [n for n in silent if not n.endswith("attn.k.bias")] == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_plain_data_that_build_the_network_again(name, tmp_path):
    model = small(name).eval()
    arguments = json.loads(json.dumps(model.arguments))
    assert model.name == name
    assert create_model(name, **arguments).arguments == model.arguments
    save_weights(tmp_path / "a.safetensors", model, {"class_names": list("abcde")})
    again, _ = load_weights(tmp_path / "a.safetensors")
    video = torch.randn(1, 3, 8, 32, 32)
    assert torch.equal(again(video), model(video))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("frames", "side"), [(8, 64), (12, 44), (4, 32)])
@torch.no_grad()
def test_other_clips(name, frames, side):
    more = {"image_size": side} if "mvit" in name else {}
    model = small(name, clip_length=frames, **more).eval()
    assert model(torch.randn(1, 3, frames, side, side)).shape == (1, 5)


@pytest.mark.parametrize("name", NAMES)
def test_a_video_alone_equals_the_video_in_a_batch_in_every_layout(name):
    model = small(name).double().eval()
    awaken(model)
    video = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
    together = model(video)
    torch.testing.assert_close(model(video[:1]), together[:1])
    torch.testing.assert_close(model(video.to(memory_format=torch.channels_last_3d)), together)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_autocast(name):
    model = small(name).eval()
    awaken(model)
    video = torch.randn(2, 3, 8, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(video)
    exact = model(video)
    assert not torch.equal(logits, exact)
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()


def test_gradients_on_a_cpu_are_right_under_bfloat16(caplog):
    """Where torch's are not: a temporal kernel of 3 over 2 frames (seen with oneDNN 3.13)."""
    gradients = []
    for enabled in (False, True, True):
        model = small("ptv_slowfast_r50", dropout=0.0)
        awaken(model)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = model(torch.randn(2, 3, 8, 32, 32))
        logits.float().square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for exact, once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(once, exact)
        torch.testing.assert_close(twice, exact)
    assert [r.getMessage() for r in caplog.records] == [
        "ptv_slowfast_r50 trains in float32: on a CPU, bfloat16 gradients over time are wrong"
    ] * 2  # of two networks, each once


@pytest.mark.parametrize("name", ["ptv_csn_r101", "ptv_slowfast_r50", "ptv_x3d_tiny", "ptv_mvit_b"])
def test_gradient_checkpointing(name):
    plain = small(name, **({"drop_path_rate": 0.5} if "mvit" in name else {}), dropout=0.3)
    awaken(plain)
    checkpointed, off = copy.deepcopy(plain), copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    checkpointed = copy.deepcopy(checkpointed)  # as averaged weights are made
    off.set_grad_checkpointing()
    off.set_grad_checkpointing(False)
    results, calls = [], []
    for network in (plain, checkpointed, off):
        inner = network.backbone.blocks[1 if "mvit" in name else 2]
        inner = next(m for m in inner.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm3d))
        count: list[int] = []
        inner.register_forward_pre_hook(lambda *args, count=count: count.append(1))
        torch.manual_seed(1)
        network(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
        calls.append(len(count))
        results.append(({n: p.grad for n, p in network.named_parameters()}, network.state_dict()))
    assert calls == [1, 2, 1]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ptv_slowfast_r50", "ptv_mvit_b"])
@torch.no_grad()
def test_torch_export(name):
    model = small(name).eval()
    awaken(model)
    video = torch.randn(2, 3, 8, 32, 32)
    exported = torch.export.export(model, (video,)).module()
    torch.testing.assert_close(exported(video), model(video), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compile_takes_it_whole():
    model = small("ptv_slowfast_r50", dropout=0.0)
    awaken(model)
    video = torch.randn(2, 3, 8, 32, 32)
    expected = model(video)
    expected.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    torch._dynamo.reset()
    # Tracing is what could fail; code generation takes minutes.
    logits = torch.compile(model, fullgraph=True, backend="aot_eager")(video)
    logits.sum().backward()
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients)


@torch.no_grad()
def test_slowfast_sees_the_fast_frames_and_the_slow_ones():
    model = small("ptv_slowfast_r50", clip_length=12, alpha=6, beta_inverse=2, width=8).eval()
    assert model.slow_frames == [0, 11]
    assert model.backbone.blocks[0].multipathway_blocks[1].conv.out_channels == 4
    awaken(model)
    video = torch.randn(1, 3, 12, 32, 32)
    seen = []
    for frame in range(12):
        changed = video.clone()
        changed[:, :, frame] += 1
        seen.append(not torch.equal(model(changed), model(video)))
    assert seen == [True] * 12


def test_overrides_reach_their_layers():
    assert small("ptv_slow_r50", dropout=0.25).backbone.blocks[-1].dropout.p == 0.25
    assert small("ptv_csn_r101").backbone.blocks[-1].dropout is None
    with torch.device("meta"):
        deep = create_model("ptv_slow_r50", depth=101)
        wide = create_model("ptv_x3d_s", width_factor=4, depth_factor=1)
    assert [len(stage.res_blocks) for stage in deep.backbone.blocks[1:5]] == [3, 4, 23, 3]
    assert wide.backbone.blocks[0].conv.conv_t.out_channels == 48
    assert [len(stage.res_blocks) for stage in wide.backbone.blocks[1:5]] == [1, 2, 5, 3]
    mvit = small("ptv_mvit_b", num_heads=2, depths=[1, 2], drop_path_rate=0.4)
    assert [block.attn.num_heads for block in mvit.backbone.blocks] == [2, 4, 4]
    assert [getattr(b.drop_path, "drop_prob", 0.0) for b in mvit.backbone.blocks] == pytest.approx(
        [0, 0.2, 0.4]
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ptv_slow_r50", {"depth": 34}, "depth must be one of 50, 101, 152, got 34"),
        (
            "ptv_slow_r50",
            {"temporal_stride": 1},
            "unknown argument 'temporal_stride'; .*Allowed: clip_length",
        ),
        ("ptv_slowfast_r50", {"clip_length": 10}, "fast pathway and must be a multiple of alpha=4, got 10"),
        ("ptv_slowfast_r50", {"width": 12}, "width must be a multiple of beta_inverse=8, got 12"),
        ("ptv_x3d_s", {"width_factor": 0}, "width_factor must be a positive number, got 0"),
        ("ptv_x3d_s", {"depth_factor": True}, "depth_factor must be a positive number, got True"),
        ("ptv_mvit_b", {"clip_length": 7}, "clip_length must be even.*got 7"),
        ("ptv_mvit_b", {"image_size": 30}, "image_size must be multiples of 4 pixels, got 30"),
        ("ptv_mvit_b", {"num_heads": 3, "embed_dim": 16}, "multiple of num_heads=3 and at least 8, got 16"),
    ],
)
def test_wrong_arguments_get_a_clear_error(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **arguments)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("ptv_slowfast_r50", (1, 3, 4, 32, 32), "built for clips of 8 frames, got 4"),
        ("ptv_mvit_b", (1, 3, 8, 32, 36), r"frames of 32 x 32 px, got 32 x 36.*image_size=\[32, 36\]"),
        ("ptv_x3d_s", (1, 1, 8, 32, 32), r"must be \(B, 3, T, H, W\)"),
    ],
)
def test_wrong_videos_get_a_clear_error(name, shape, message):
    with pytest.raises(ValueError, match=message):
        small(name)(torch.zeros(shape))


# ---- published weights ------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file as PyTorchVideo publishes them, of its own X3D-S for 7 classes."""
    path = tmp_path / "X3D_S.pyth"
    torch.save({"model_state": original("ptv_x3d_s", 7).state_dict(), "epoch": 300, "cfg": "TRAIN: 1"}, path)
    return path


def test_published_weights(published, caplog):
    caplog.set_level(logging.INFO, "dtf")
    model = create_model("ptv_x3d_s", num_classes=7, clip_length=13, pretrained=str(published), **X3D).eval()
    video = torch.randn(1, 3, 13, 160, 160)
    with torch.no_grad():
        expected = original("ptv_x3d_s", 7)(video)
        torch.testing.assert_close(model(video).softmax(1), expected, rtol=1e-4, atol=1e-6)
    assert "starts fresh" not in caplog.text
    assert "pretrained" not in model.arguments


def test_other_classes_get_a_fresh_classifier(published, caplog):
    caplog.set_level(logging.INFO, "dtf")
    model = create_model("ptv_x3d_s", num_classes=3, clip_length=8, pretrained=str(published), **X3D)
    assert "those of 7 classes; the classifier of 3 starts fresh" in caplog.text
    state = torch.load(published, weights_only=True)["model_state"]
    assert torch.equal(model.backbone.blocks[-1].pool.pre_conv.weight, state["blocks.5.pool.pre_conv.weight"])
    assert model.backbone.blocks[-1].proj.weight.shape == (3, 2048)


def test_weights_that_do_not_fit_are_refused(published, tmp_path):
    with pytest.raises(ValueError, match=r"X3D_S\.pyth does not fit the backbone: .*has shape"):
        create_model("ptv_x3d_s", pretrained=str(published), width_factor=1.5, depth_factor=0.5)
    with pytest.raises(ValueError, match="does not fit the backbone: missing"):
        create_model("ptv_slow_r50", pretrained=str(published), width=8)
    state = create_model("ptv_x3d_s", num_classes=7, **X3D).backbone.state_dict()
    del state["blocks.5.proj.weight"]
    torch.save({"model_state": state}, tmp_path / "part.pyth")
    with pytest.raises(ValueError, match=r"missing blocks.5.proj.weight"):
        create_model("ptv_x3d_s", num_classes=7, pretrained=str(tmp_path / "part.pyth"), **X3D)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_executed(tmp_path):
    path = tmp_path / "evil.pyth"
    torch.save({"model_state": {"weight": torch.ones(1)}, "cfg": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(ValueError, match="not a readable weights file"):
        create_model("ptv_x3d_s", pretrained=str(path), **X3D)
    assert not (tmp_path / "sprung").exists()


def test_published_weights_are_downloaded_once(published, tmp_path, monkeypatch):
    """By the table of PyTorchVideo, with a file in place of its server."""
    hub = _import("pytorchvideo.models.hub.x3d")
    monkeypatch.setitem(hub.checkpoint_paths, "x3d_s", published.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    arguments: dict[str, Any] = {"num_classes": 7, "pretrained": True, **X3D}
    create_model("ptv_x3d_s", **arguments)
    published.unlink()
    create_model("ptv_x3d_s", **arguments)
    (kept,) = (tmp_path / "home").rglob("*.pyth")
    kept.unlink()
    with pytest.raises(OSError, match=r"could not get file:.*\n.*pretrained=PATH"):
        create_model("ptv_x3d_s", **arguments)


def test_every_name_has_published_weights():
    from dtf.models.pytorchvideo import _PUBLISHED

    assert sorted(_PUBLISHED) == PUBLISHED
    for module, key in [*_PUBLISHED.values(), ("vision_transformers", "mvit_base_32x3")]:
        url = _import(f"pytorchvideo.models.hub.{module}").checkpoint_paths[key]
        assert url.startswith("https://")
        assert url.endswith(".pyth")
    with pytest.raises(ValueError, match="ptv_x3d_tiny: there are no published weights"):
        create_model("ptv_x3d_tiny", pretrained=True)


def test_building_one_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small("ptv_x3d_s")(torch.zeros(2, 3, 8, 32, 32)).sum().backward()
