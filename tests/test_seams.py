"""An operator, a family of layers and a task that nothing under dtf/ knows: registered here, in full use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dtf import explain, profile, report
from dtf.apply.export import export
from dtf.apply.graphs import read_task
from dtf.layers.options import Options, one_of, option, positive_number
from dtf.layers.temporal import FAMILIES, Family, Maps, Place, TemporalLayer, register_family, temporal_layers
from dtf.lit.norms import backbone_norms
from dtf.lit.scores import VideoResult, VideoScores
from dtf.lit.tasks.task import Step, Task
from dtf.models import create_model, load_weights, register_model, registry, save_weights
from dtf.models.cost import measure_cost
from dtf.models.resnet import RESNET, TINY
from dtf.ops import dispatch
from dtf.ops.checks import check_clip
from dtf.ops.dispatch import Backend, BackendName, Cost, describe
from dtf.runs.measure import Measure

# ---- an operator: each frame and its former one, in the mean -----------------------------------------------


def _reference(x: Tensor) -> Tensor:
    former = torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2)
    return (x + former) / 2


@torch.library.custom_op("toy::pair_mean", mutates_args=())
def _pair_mean(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, :, 1:].add_(x[:, :, :-1]).div_(2)
    return out


@_pair_mean.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _differentiate(ctx: Any, grad: Tensor) -> Tensor:
    out = grad / 2
    out[:, :, 0] *= 2
    out[:, :, :-1] += grad[:, :, 1:] / 2
    return out


_pair_mean.register_autograd(_differentiate)


def pair_mean(x: Tensor, *, backend: BackendName = "auto") -> Tensor:
    """(B, C, T, H, W) -> same shape: the mean of each frame and the one before it."""
    check_clip("pair_mean", x)
    return dispatch.OPERATORS["pair_mean"].select(backend, x)(x)


def register_operator() -> None:
    dispatch.register(
        "pair_mean",
        Backend("torch", _pair_mean, custom_op="toy::pair_mean"),
        Backend("reference", _reference, double_backward=True),
        plain=_reference,
        cost=lambda x: Cost(2 * x.numel(), 2 * x.numel() * x.element_size()),
    )


# ---- a family: a layer that keeps the shape, one for a convolution, one for a norm -------------------------


@dataclass(frozen=True)
class ToyOptions(Options):
    strength: float = option(1.0, positive_number)
    backend: BackendName = option("auto", one_of("auto", "reference", "torch", "cupy"))


class ToyBlock(TemporalLayer):
    """Adds the normalised means of neighbouring frames, at first by nothing."""

    family = "toy"

    def __init__(self, channels: int, strength: float, backend: BackendName) -> None:
        super().__init__()
        self.strength, self.backend = strength, backend
        self.norm = nn.BatchNorm3d(channels, affine=False)
        self.alpha = nn.Parameter(torch.zeros(channels, 1, 1, 1))

    def added(self, x: Tensor) -> Tensor:
        return self.strength * self.alpha * self.norm(pair_mean(x, backend=self.backend))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.added(x)

    def explain(self, x: Tensor) -> Maps:
        energy = self.added(x).square().mean(dim=1)
        return Maps("steps", "what the toys added", energy, tuple(f"step {t}" for t in range(x.shape[2])))

    def watched(self) -> dict[str, Tensor]:
        return {"alpha": self.alpha}


class ToyConvolution(TemporalLayer):
    """The convolution in whose place it stands, of each frame's features times a gain of its own."""

    family = "toy"

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        c = convolution
        sizes = (c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding)
        self.inner = nn.Conv2d(*sizes, bias=False)  # type: ignore[arg-type]
        self.route = nn.Conv2d(c.in_channels, c.in_channels, 1, bias=False)
        nn.init.zeros_(self.route.weight)

    def gain(self, frames: Tensor) -> Tensor:
        return 1 + self.route(frames.mean(dim=(2, 3), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1)
        out = self.inner(frames * self.gain(frames))
        return out.unflatten(0, (-1, x.shape[2])).transpose(1, 2)

    def fresh_names(self) -> set[str]:
        return {"route.weight"}

    def from_image(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"inner.{name}": value for name, value in state.items()}

    def explain(self, x: Tensor) -> Maps:
        frames = x.transpose(1, 2).flatten(0, 1)
        energy = ((self.gain(frames) - 1) * frames).square().mean(dim=1).unflatten(0, (-1, x.shape[2]))
        return Maps("calibration", "what the gain changed", energy.mean(dim=1, keepdim=True), ("all",))


class ToyNorm(TemporalLayer):
    """The norm in whose place it stands, and beside it that of the mean over time, at first nothing."""

    family = "toy"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frame, self.mean = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.mean.weight)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.frame(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, x.shape[2])).transpose(1, 2)
        return frames + self.mean(x.mean(dim=2)).unsqueeze(2)

    def fresh_names(self) -> set[str]:
        return {name for name in self.state_dict() if name.startswith("mean.")}

    def fresh_norms(self) -> list[nn.Module]:
        return [self.mean]

    def from_image(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"frame.{name}": value for name, value in state.items()}


def build(options: ToyOptions, place: Place) -> TemporalLayer | None:
    if place.slot == "convolution":
        assert place.convolution is not None
        return ToyConvolution(place.convolution)
    if place.slot == "norm":
        return ToyNorm(place.channels)
    if place.slot == "after_activation":
        return ToyBlock(place.channels, options.strength, options.backend)
    return None


# ---- a task: how bright a video is, here its class as a fraction -------------------------------------------


@dataclass(frozen=True)
class Errors(VideoResult):
    @property
    def metrics(self) -> dict[str, float]:
        return {"far": float(np.abs(self.scores[:, 0] - self.label)[self.sound].mean())}


class Shade(Task):
    name = "shade"
    measures: ClassVar = (Measure("far", "mean distance", "min"),)

    @property
    def outputs(self) -> list[str]:
        return ["shade"]

    def target(self, index, video: int, label: int) -> Tensor:
        return torch.tensor(label / 10)

    def loss(self, network, batch: Mapping[str, Any]) -> Step:
        distance = (network(batch["video"])[:, 0] - batch["label"]).square()
        return Step(distance.mean(), len(distance))

    def collector(self) -> VideoScores:
        return VideoScores(Errors)


# ---- all of it, used ---------------------------------------------------------------------------------------

BOTTLENECK = {**TINY, "widths": (8, 8, 16, 16), "stem_width": 8}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """What this file registers is gone with its last test."""
    tables = (dispatch.OPERATORS, FAMILIES, registry._ARCHITECTURES)
    before = [dict(table) for table in tables]
    register_operator()
    family = register_family(Family("toy", ToyOptions, build))
    register_model("toy_tiny", RESNET, family, fixed={"block": "bottleneck"}, pocket=True, **BOTTLENECK)
    register_model("plain_tiny", RESNET, fixed={"block": "bottleneck"}, pocket=True, **BOTTLENECK)
    register_model("toy_basic", RESNET, family, fixed={"block": "basic"}, **BOTTLENECK)
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def test_the_operator_stands_beside_the_others() -> None:
    x = torch.randn(2, 3, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(pair_mean(x), pair_mean(x, backend="reference"))
    assert torch.autograd.gradcheck(pair_mean, x)
    torch.library.opcheck(_pair_mean, (x,))
    assert re.search(r"^pair_mean\n  torch +live.*\n  reference +live", describe(), flags=re.M)
    with pytest.raises(ValueError, match="unknown backend 'cupy'; Allowed: auto, torch, reference"):
        pair_mean(x, backend="cupy")
    with torch.device("meta"):
        block, clip = ToyBlock(4, 1.0, "auto"), torch.zeros(1, 4, 3, 5, 5)
    assert measure_cost(block, clip).macs == clip.numel()


def test_its_options_are_checked_with_those_of_the_network() -> None:
    with pytest.raises(ValueError, match="toy_tiny: strength must be a positive number, got -1"):
        create_model("toy_tiny", strength=-1)
    with pytest.raises(ValueError, match="unknown argument 'strenght'; did you mean 'strength'"):
        create_model("toy_tiny", strenght=1)


@pytest.mark.parametrize("block", ["tiny", "basic"])
def test_layers_stand_in_their_places(block: str) -> None:
    model = create_model(f"toy_{block}", 3, clip_length=4, dropout=0.0)
    names = {"tiny": ["conv2", "bn2", "toy"], "basic": ["conv1", "bn1", "conv2", "bn2"]}[block]
    assert list(temporal_layers(model.backbone.layer2[0])) == names
    layer = model.backbone.layer2[0].get_submodule(names[0])
    assert layer.inner.stride == (2, 2)
    # What a layer draws, or sets to nothing, is its own.
    assert not layer.route.weight.any()
    model.train()(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_image_weights_reach_what_layers_stand_for(tmp_path: Path) -> None:
    plain = create_model("plain_tiny", 3, clip_length=4).eval()
    for norm in backbone_norms(plain):
        nn.init.uniform_(norm.running_mean)
    image = {k: v.contiguous() for k, v in plain.backbone.state_dict().items() if not k.startswith("fc.")}
    save_file(image, tmp_path / "image.safetensors")
    toy = create_model("toy_tiny", 3, clip_length=4, pretrained=str(tmp_path / "image.safetensors")).eval()
    toy.backbone.fc.load_state_dict(plain.backbone.fc.state_dict())
    video = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(toy(video), plain(video))
    # Norms that the weights fill may be frozen, fresh ones may not.
    assert len(backbone_norms(toy)) == len(backbone_norms(plain))

    # A layer that says nothing of image weights is all new, also in the place of a convolution.
    class New(ToyConvolution):
        fresh_names = TemporalLayer.fresh_names
        from_image = TemporalLayer.from_image

    def build_new(options: ToyOptions, place: Place) -> New | None:
        return New(place.convolution) if place.convolution is not None else None

    family = Family("new", ToyOptions, build_new)
    register_model("new_tiny", RESNET, family, fixed={"block": "bottleneck"}, **BOTTLENECK)
    new = create_model("new_tiny", 3, clip_length=4, pretrained=str(tmp_path / "image.safetensors"))
    assert torch.equal(new.backbone.layer1[0].conv1.weight, image["layer1.0.conv1.weight"])


def test_weights_are_stored_and_read(tmp_path: Path) -> None:
    model = create_model("toy_tiny", 3, clip_length=4, strength=0.5, backend="reference").eval()
    save_weights(tmp_path / "a.safetensors", model, {})
    found, _ = load_weights(tmp_path / "a.safetensors")
    assert found.arguments["strength"] == 0.5
    assert "backend" not in found.arguments
    video = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(found(video), model(video))


def test_from_training_to_the_page(
    command, tiny_data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    settings = tmp_path / "conf"
    for group, text in {
        "model/toy_tiny.yaml": "name: toy_tiny\npretrained: false\nstrength: null\n",
        "task/shade.yaml": f"_target_: {__name__}.Shade\nname: shade\n",
    }.items():
        (settings / group).parent.mkdir(parents=True)
        (settings / group).write_text(text)
    folder = tmp_path / "run"
    arguments = [
        *(f"hydra.searchpath=[file://{settings}]", "model=toy_tiny", "model.strength=2.0", "task=shade"),
        *(*tiny_data, "trainer=cpu", "trainer.max_epochs=2", "trainer.limit_train_batches=2"),
        *("callbacks.last.every_n_steps=1", f"output={folder}"),
    ]
    # Trained, cut off, resumed, tested.
    stop = "+callbacks.stop={_target_:engine.StopAtStep,step:3}"
    assert command("train.py", *arguments, stop).err.endswith("error: stopped at step 3\n")
    done = command("train.py", *arguments)
    assert done.code == 0, done.err
    assert "going on after step 3" in done.out
    found = json.loads((folder / "results.json").read_text())
    assert (found["task"]["name"], found["videos"]) == ("shade", 20)
    filters = json.loads((folder / "filters.json").read_text())
    assert filters["backbone.layer1.0.toy"]["over"] == "steps"
    assert list(filters["backbone.layer1.0.toy"]["energies"]) == ["step 0", "step 1", "step 2", "step 3"]
    assert filters["backbone.layer1.0.conv2"]["over"] == "calibration"

    # Evaluated again, from a file of weights.
    weights = folder / "model.safetensors"
    network, _ = load_weights(weights)
    assert network.arguments["strength"] == 2.0
    checked = command(
        *("eval.py", *arguments[:1], "task=shade", "trainer=cpu", f"checkpoint={weights}"),
        *(*tiny_data, f"output={tmp_path}/eval"),
    )
    assert checked.code == 0, checked.err
    again = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert again["far"] == pytest.approx(found["far"], rel=1e-5)

    # Shown: the page, and what the layers did with a video.
    page = report.write_report(folder).read_text()
    for text in ("mean distance", "Temporal filters", "over steps", "over calibration"):
        assert text in page, text
    root = next(a for a in tiny_data if a.startswith("data.root=")).removeprefix("data.root=")
    video = sorted(Path(root).rglob("test/*/*.mp4"))[0]
    given = [str(video), f"checkpoint={weights}", f"output={tmp_path}/explained", "device=cpu", "block=all"]
    assert explain.main(given) == 0
    shown = json.loads((tmp_path / "explained" / "explain.json").read_text())[0]
    assert shown["maps"]["backbone.layer4.0.conv2"] == {"over": "calibration", "labels": ["all"]}
    assert len(shown["shares"]["backbone.layer4.0.toy"]) == 4
    assert shown["score"] != 1, "outputs are scores as they are"
    assert {p.name for p in (tmp_path / "explained").glob("*.png")} == set(shown["pictures"].values())

    # Exported: both graphs check themselves against the network.
    files = export(weights, tmp_path / "exported")
    assert [file.path.name for file in files] == ["model.safetensors", "model.pt2", "model.onnx"]
    assert {read_task(file.path) for file in files} == {"shade"}

    # Profiled.
    capsys.readouterr()
    assert profile.main(["toy_tiny", "device=none", "clip_length=4", "image_size=32"]) == 0
    assert "layer4" in capsys.readouterr().out
