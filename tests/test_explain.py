"""python -m dtf.explain: Grad-CAM on networks whose answer is known, the clip it reads, and the command."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import REPOSITORY, assert_one_line_error, documented
from PIL import Image
from test_predict import VIDEOS
from torch import nn

from dtf.apply.explain import choose_blocks, grad_cam, read_clip
from dtf.apply.predictor import Predictor
from dtf.data.decode import VideoError, VideoReader
from dtf.explain import main, parse
from dtf.layers import Maps
from dtf.models import create_model, layer_maps, save_weights

RESNET = {"widths": [8, 8, 16, 16], "stem_width": 8, "filter_groups": 8}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32}


class ColourSeeker(nn.Module):
    """Class 0 is how much red there is beyond 0.5, class 1 how much green; all else is ignored."""

    def __init__(self, folded: bool) -> None:
        super().__init__()
        self.last_stage = nn.ReLU()
        self.folded = folded

    def forward(self, video):
        if not self.folded:
            return self.last_stage(video - 0.5).mean(dim=(2, 3, 4))
        frames = self.last_stage(video.transpose(1, 2).flatten(0, 1) - 0.5)
        return frames.mean(dim=(2, 3)).unflatten(0, (len(video), -1)).mean(dim=1)

    def unfold(self, maps):
        return maps.unflatten(0, (-1, 6)).transpose(1, 2) if self.folded else maps


@pytest.mark.parametrize("folded", [False, True])
def test_the_map_lies_where_the_answer_comes_from(folded):
    video = torch.full((2, 3, 6, 8, 8), 0.3)
    video[1, 0, 2, 1:3, 4:6] = 0.9  # red in frame 2
    video[1, 1, 4, 5:7, 0:2] = 0.8  # green in frame 4
    video[1, 2, :, 7, 7] = 1.0  # blue counts for nothing
    network = ColourSeeker(folded)
    for label, (step, rows, columns) in enumerate(
        [(2, slice(1, 3), slice(4, 6)), (4, slice(5, 7), slice(0, 2))]
    ):
        cam = grad_cam(network, video, label)
        assert cam.shape == (2, 6, 8, 8)
        assert cam[0].max() == 0, "the first clip shows nothing"
        inside = cam[1, step, rows, columns].clone()
        assert inside.min() > 0.2
        cam[1, step, rows, columns] = 0
        assert cam.max() == 0, f"class {label} is seen elsewhere as well"


def test_of_a_resnet_is_its_class_activation_map():
    torch.manual_seed(0)
    network = create_model("dtf_tiny", num_classes=5, clip_length=4, **RESNET).double().eval()
    video = torch.randn(2, 3, 4, 48, 32, dtype=torch.float64)
    kept = []
    handle = network.last_stage.register_forward_hook(
        lambda module, inputs, output: kept.append(output.detach())
    )
    cam = grad_cam(network, video, 3)
    handle.remove()
    expected = torch.einsum("c,nchw->nhw", network.backbone.fc.weight[3].detach(), kept[0])
    assert cam.shape == (2, 4, 3, 2)
    assert torch.allclose(cam.flatten(0, 1), expected.relu())
    assert cam.max() > 0
    assert not cam.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    # Frozen weights change nothing.
    assert torch.equal(grad_cam(network.requires_grad_(False), video, 3), cam)


def test_of_a_swin_follows_its_tokens():
    network = create_model("dtf_swin_tiny", 5, clip_length=8, filter_groups=8, **SWIN).double().eval()
    video = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
    backbone = network.backbone
    kept = []
    handle = network.last_stage.register_forward_hook(lambda m, inputs, output: kept.append(output.detach()))
    cam = grad_cam(network, video, 1)
    handle.remove()
    tokens = kept[0].requires_grad_()  # (B*T, h, w, C)
    assert tokens.shape == (4, 4, 4, 32)
    logits = backbone.head(backbone.norm(tokens)).unflatten(0, (2, 2)).mean(dim=1)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), tokens)
    for clip in range(2):
        steps = slice(2 * clip, 2 * clip + 2)
        weights = gradient[steps].sum(dim=(0, 1, 2))
        assert torch.allclose(cam[clip], (tokens[steps] @ weights).relu())


def test_class_tokens_see_patches_through_the_last_attention():
    sizes = {"image_size": 32, "patch_size": 8, "embed_dim": 8, "blocks": 2, "num_heads": 2}
    network = create_model("c2d_vit_base", 5, clip_length=4, **sizes).eval()
    cam = grad_cam(network, torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)), 1)
    assert cam.shape == (2, 2, 4, 4)
    assert cam.any()


def test_stages_without_places_are_refused():
    network = create_model("c2d_tiny", 5, clip_length=4, stem_width=8, widths=[8, 8, 8, 8]).eval()
    network.backbone.layer4 = nn.Sequential(network.backbone.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.classify = lambda frames: network.features(frames).unflatten(0, (-1, 4)).mean(dim=1)
    with pytest.raises(ValueError, match=r"needs one map of features.* of c2d_tiny gives \(4, 8\)"):
        grad_cam(network, torch.zeros(1, 3, 4, 32, 32), 0)
    network = create_model("ptv_mvit_b", 5, clip_length=4, image_size=32, embed_dim=8, depths=[1, 1])
    with pytest.raises(ValueError, match="ptv_mvit_b does not say which stage its answer rests on"):
        grad_cam(network, torch.zeros(1, 3, 4, 32, 32), 0)


def test_baselines_of_one_pathway():
    network = create_model("ptv_x3d_tiny", 5, clip_length=4).eval()
    video = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    assert grad_cam(network, video, 1).shape == (2, 4, 2, 2)
    network = create_model("ptv_slowfast_r50", 5, clip_length=8, depth=18, width=16).eval()
    with pytest.raises(ValueError, match="ptv_slowfast_r50 gives list"):
        grad_cam(network, video.repeat(1, 1, 2, 1, 1), 1)


def test_the_clip_is_what_predict_sees(tiny_checkpoint: Path):
    predictor = Predictor(tiny_checkpoint, views="1x1", device="cpu")
    clip = read_clip(predictor.view, VIDEOS[0])
    frames = predictor(VIDEOS[0]).frames
    assert np.array_equal(clip.frames, frames)
    assert clip.seconds.shape == (4,)
    assert (np.diff(clip.seconds) > 0).all()
    assert clip.duration == pytest.approx(4 * (clip.seconds[1] - clip.seconds[0]), rel=0.05)


def test_a_folder_of_frames_has_no_seconds(tiny_checkpoint: Path, tmp_path: Path, monkeypatch):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 7):
        Image.new("RGB", (48, 40), (40 * number, 0, 0)).save(folder / f"{number:05}.jpg")
    clip = read_clip(Predictor(tiny_checkpoint, views="1x1", device="cpu").view, folder)
    assert clip.seconds is None
    assert clip.duration == 0
    assert [clip.time(t) for t in range(4)] == [f"frame {i}" for i in clip.indices]
    monkeypatch.chdir(tmp_path)
    assert main(["frames", f"checkpoint={tiny_checkpoint}", "block=layer4.0.dtf2"]) == 0
    assert (tmp_path / "explained" / "frames-filters.png").exists()


def test_choosing_blocks():
    sizes = {"a.1.dtf": 8, "a.2.dtf": 8, "b.1.dtf": 4, "b.2.dtf1": 4}
    responses = {n: Maps("frequency", "", torch.zeros(1, 1, s, s), ("",)) for n, s in sizes.items()}
    assert choose_blocks(responses) == ["a.2.dtf", "b.2.dtf1"]
    assert choose_blocks(responses, "all") == list(sizes)
    assert choose_blocks(responses, "2.dtf1,a.1.dtf") == ["b.2.dtf1", "a.1.dtf"]
    with pytest.raises(ValueError, match=r"several blocks end in '1\.dtf'"):
        choose_blocks(responses, "1.dtf")
    with pytest.raises(ValueError, match=r"there is no block 'a\.3\.dtf'; did you mean a\.[12]\.dtf"):
        choose_blocks(responses, "a.3.dtf")


def test_frequencies_in_hertz():
    # 3 cycles in 2 seconds.
    maps = Maps("frequency", "", torch.zeros(1, 2, 1, 1), ("mean over time", "1 per clip"), per_clip=True)
    assert maps.label(1, 2.0) == "1 per clip (0.5 Hz)"
    assert maps.label(0, 2.0) == "mean over time"
    assert maps.label(1, 0.0) == "1 per clip"


def test_documented_command(tiny_checkpoint: Path, tmp_path: Path, capsys):
    command = documented("explain.md", "dtf.explain")
    assert command[:2] == ["-m", "dtf.explain"]
    (tmp_path / "broken.mp4").write_text("hello\n")
    videos = [str(VIDEOS[0]), str(tmp_path / "broken.mp4"), str(VIDEOS[0])]
    options = [a for a in command[2:] if "=" in a and not a.startswith("checkpoint=")]
    assert len(options) == len(command) - 4, "one video, one checkpoint"
    assert main([*videos, *options, f"checkpoint={tiny_checkpoint}", f"output={tmp_path}"]) == 1
    captured = capsys.readouterr()
    assert "broken.mp4" in captured.err
    assert captured.err.splitlines()[-1] == "error: 1 of 3 videos could not be read"
    records = json.loads((tmp_path / "explain.json").read_text())
    assert [bool(r["error"]) for r in records] == [False, True, False]

    predictor = Predictor(tiny_checkpoint, views="1x1", device="cpu")
    prediction = predictor(VIDEOS[0])
    assert prediction.frames is not None
    frames = torch.from_numpy(prediction.frames).permute(3, 0, 1, 2)[None]
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) * 255 for x in (predictor.view.mean, predictor.view.std))
    expected = layer_maps(predictor.network, (frames - mean) / std)
    for record in (records[0], records[2]):
        assert record["best"] == record["class"] == prediction.classes[0]
        assert record["score"] == pytest.approx(prediction.scores[0], abs=1e-5)
        assert list(record["shares"]) == list(expected)
        for name, shares in record["shares"].items():
            energy = expected[name].values.sum(dim=(0, 2, 3))
            assert shares == pytest.approx((energy / energy.sum()).tolist(), abs=1e-4)
        assert all(name in captured.out for name in expected)
        for picture in record["pictures"].values():
            with Image.open(tmp_path / picture) as image:
                assert image.format == "PNG"
                assert min(image.size) > 200
    assert len({p for r in (records[0], records[2]) for p in r["pictures"].values()}) == 4


CLIP = {
    "clip_length": 4,
    "frame_stride": 1,
    "crop_px": 32,
    "short_side_px": None,
    "sampling": {},
    "mean": [0.45] * 3,
    "std": [0.225] * 3,
}


@pytest.mark.parametrize("deform", [True, False])
def test_layers_that_look_at_the_next_step_get_a_picture_of_where(tmp_path: Path, deform: bool):
    network = create_model(
        "sifa_tiny", 3, clip_length=4, stem_width=8, widths=[8, 8, 8, 8], deform=deform, offset_init="kaiming"
    )
    weights = tmp_path / "looks.safetensors"
    save_weights(weights, network, {"class_names": ["a", "b", "c"], "data": CLIP})
    out = tmp_path / "out"
    assert main([str(VIDEOS[0]), f"checkpoint={weights}", "block=layer2.0.sifa", f"output={out}"]) == 0
    (record,) = json.loads((out / "explain.json").read_text())
    assert list(record["pictures"]) == ["filters", "looks", "gradcam"]
    with Image.open(out / record["pictures"]["looks"]) as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    arrows = (drawn[..., 2] - drawn[..., 0] > 100) & (drawn[..., 1] - drawn[..., 0] > 100)
    assert arrows.any(), "arrows are cyan"


def test_a_control_gets_grad_cam_alone(tmp_path: Path, capsys):
    network = create_model("c2d_tiny", 3, clip_length=4, stem_width=8, widths=[8, 8, 8, 8])
    names = ["$x_", "[bold]b", "line\nend"]
    weights = tmp_path / "control.safetensors"
    save_weights(weights, network, {"class_names": names, "data": CLIP})
    arguments = [str(VIDEOS[0]), f"checkpoint={weights}", "class=line\nend", f"output={tmp_path / 'out'}"]
    assert main(arguments) == 0
    assert "c2d_tiny has no temporal layers" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert list(record["pictures"]) == ["gradcam"]
    assert record["class"] == "line\nend"
    assert record["shares"] == {}
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".json", ".png"]
    with pytest.raises(SystemExit):
        main([*arguments, "block=all"])
    assert "c2d_tiny has no temporal layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["v.mp4"], "no checkpoint: add checkpoint=PATH"),
        (["checkpoint=x"], "no video"),
        (["v.mp4", "chekpoint=x"], "there is no option chekpoint; did you mean checkpoint?"),
        (["v.mp4", "--block", "x"], "there is no option --block"),
        (
            [str(VIDEOS[0]), "checkpoint={good}", "class=growing"],
            "knows no class 'growing'; did you mean grow?",
        ),
        ([str(VIDEOS[0]), "checkpoint={good}", "block=layer9"], "there is no block 'layer9'"),
        ([str(VIDEOS[0]), "checkpoint=/no/such.ckpt"], "there is no checkpoint /no/such.ckpt"),
        (
            [str(VIDEOS[0]), "checkpoint=model.pt2"],
            "model.pt2 is a graph without its network: give the .ckpt",
        ),
    ],
)
def test_wrong_input_is_one_line(tiny_checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(main, [a.format(good=tiny_checkpoint) for a in arguments], message, capsys)


def test_a_video_with_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("take=1.mp4").write_text("")
    assert parse(["take=1.mp4", "checkpoint=c"])[0] == ["take=1.mp4"]


def test_the_documented_code_runs(capsys):
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "explain.md").read_text(), flags=re.M | re.S
    )
    exec(compile(code, "explain.md", "exec"), {})
    assert "backbone.layer1.0.dtf1 (2, 5, 32, 32)" in capsys.readouterr().out


def test_a_video_that_never_ends_is_given_up(tiny_checkpoint: Path, monkeypatch) -> None:
    view = Predictor(tiny_checkpoint, device="cpu").view
    monkeypatch.setattr(VideoReader, "_build_table", lambda self, *args: time.sleep(600))
    with pytest.raises(VideoError, match=r"took longer than max_read_seconds=0\.3 and was given up"):
        read_clip(view, VIDEOS[0], 0.3)
