"""Weight files: whole round trip, atomic writes, refusals; ImageNet weights inflated from 2D networks."""

from __future__ import annotations

import io
import os
import pickle
import stat
import zipfile

import pytest
import timm
import torch
from quick import quick
from safetensors.torch import save_file

from dtf.models import create_model, load_weights, save_weights
from dtf.models.registry import _ARCHITECTURES
from dtf.models.weights import file as module
from dtf.models.weights import rebuild
from dtf.models.weights.images import read_state_dict

METADATA = {
    "class_names": ["links", "rechts"],
    "mean": [0.45] * 3,
    "sampling": {"stride": 2},
    "note": "größer ✓",
}
TINY = {"num_classes": 2, "clip_length": 4, "widths": [8, 8, 16, 16]}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("dtf_tiny", **TINY)


def test_round_trip(tmp_path, model):
    path = tmp_path / "a.safetensors"
    video = torch.randn(2, 3, 4, 32, 32)
    model.train()(video)  # running statistics travel too
    save_weights(path, model, METADATA)
    again, metadata = load_weights(path)
    assert metadata == METADATA
    assert (again.name, again.arguments) == (model.name, model.arguments)
    assert not again.training
    assert torch.equal(again(video), model.eval()(video))
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors"]


def test_files_are_as_readable_as_any_new_file(tmp_path, model):
    save_weights(tmp_path / "a.safetensors", model, {})
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "other")}
    assert len(modes) == 1


def test_a_failed_write_keeps_the_former_file(tmp_path, model, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_weights(path, model, {"version": 1})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, model, {"version": 2})
    assert load_weights(path)[1] == {"version": 1}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_new_file_replaces_the_former_one_at_once(tmp_path, model):
    path = tmp_path / "a.safetensors"
    save_weights(path, model, {"version": 1})
    os.link(path, tmp_path / "held")  # a reader that still has the former file open
    save_weights(path, model, {"version": 2})
    assert load_weights(path)[1] == {"version": 2}
    assert load_weights(tmp_path / "held")[1] == {"version": 1}


def test_saving_refuses_what_could_not_be_loaded(tmp_path, model):
    with pytest.raises(ValueError, match="metadata must be JSON data"):
        save_weights(tmp_path / "a.safetensors", model, {"x": object()})
    with pytest.raises(ValueError, match="metadata must be JSON data"):
        save_weights(tmp_path / "a.safetensors", model, {"x": float("nan")})
    model.name = ""
    with pytest.raises(ValueError, match="made by create_model"):
        save_weights(tmp_path / "a.safetensors", model, {})
    model.name = "dtf_tiny"
    with pytest.raises(FileNotFoundError, match=r"folder of .* does not exist"):
        save_weights(tmp_path / "missing" / "a.safetensors", model, {})
    assert os.listdir(tmp_path) == []


def test_loading_refuses_other_files(tmp_path, model):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no weights file .*a\.safetensors"):
        load_weights(path)
    for content in (b"", b"hello, this is text", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_weights(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"not written by dtf.models.save_weights"):
        load_weights(path)
    save_weights(path, model, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "dtf_huge"}, "unknown model 'dtf_huge'"),
        ({"arguments": '{"clip_length": 8}'}, r"cannot rebuild 'dtf_tiny'.*: \d+ tensors .* first backbone"),
        ({"arguments": '{"clip_lenght": 8}'}, "did you mean 'clip_length'"),
        ({"arguments": '{"pretrained": true}'}, "must not ask for pretrained weights"),
        ({"arguments": "[1]"}, "must be JSON objects"),
        ({"metadata": "{"}, "damaged header"),
        ({"metadata": "[" * 100_000}, "damaged header: .*nested more than 32 deep"),
        ({"arguments": '{"layers": ' + "[" * 40 + "]" * 40 + "}"}, "nested more than 32 deep"),
        ({"arguments": '{"layers": [3000, 3000, 3000, 3000]}'}, r"layers=3000, far more .*\(2048\)"),
        ({"arguments": '{"layers": [1, 1, 1, 2000]}'}, r"ask for more than \d+ parameters"),
        ({"arguments": '{"num_classes": 4000000}'}, "num_classes=4000000, far more than its tensors have"),
        ({"arguments": '{"num_classes": 2000, "widths": [2048, 2048, 2048, 2048]}'}, "tensors are missing"),
        ({"name": "ptv_mvit_b", "arguments": '{"embed_dim": 2048}'}, "tensors are missing|ask for more"),
        ({"name": "ptv_mvit_b", "arguments": '{"depths": [1, 1000000000]}'}, "depths=1000000000, far more"),
        ({"name": "ptv_mvit_b", "arguments": '{"depths": [2000, 2000]}'}, "depths in all=4000, far more"),
        ({"name": "ptv_x3d_s", "arguments": '{"depth_factor": 1e300}'}, "depth_factor=1e[+]300, far more"),
        ({"name": "ptv_slowfast_r50", "arguments": '{"clip_length": 8000000000}'}, "clip_length=8000000000"),
        (
            {"name": "c2d_swin_tiny", "arguments": '{"image_size": 2048, "depths": [1, 2, 2, 2]}'},
            r"bytes of constants|tensors are missing|ask for more",
        ),
        (
            {"name": "c2d_swin_tiny", "arguments": '{"depths": ' + str([1] * 65) + "}"},
            "65 entries, at most 64",
        ),
        ({"arguments": '{"layers": [1, 1, NaN, 1]}'}, "layers=nan"),
    ],
)
def test_loading_refuses_headers_that_do_not_fit(tmp_path, model, change, message):
    path = tmp_path / "a.safetensors"
    texts = {"format": "dtf-weights-1", "name": "dtf_tiny", "metadata": "{}"}
    texts["arguments"] = module.json.dumps(model.arguments)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, metadata={**texts, **change})
    with pytest.raises(ValueError, match=message) as error:
        load_weights(path)
    assert "\n" not in str(error.value)


def test_what_is_asked_for_takes_no_memory_before_it_is_compared(monkeypatch):
    """Sizes that pass for plausible are laid out on the meta device: nothing of the network is allocated."""
    made = []
    real = torch.nn.Parameter.__new__

    def watched(cls, data=None, requires_grad=True):
        made.append(data.device.type)
        return real(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", watched)
    arguments = {"dtf_tiny": {"widths": [2048] * 4}, "ptv_mvit_b": {"embed_dim": 2048, "image_size": 64}}
    for name, asked in arguments.items():
        misfits = rebuild.lay_out(name, asked, {f"x{i}": (1,) for i in range(200)})
        assert len(misfits) > 200
    assert set(made) == {"meta"}


# One of each backbone, with and without temporal layers: the smallest, as they come.
BUILDERS = {(entry.backbone.name, entry.family): name for name, entry in _ARCHITECTURES.items()}


@pytest.mark.parametrize("name", quick(BUILDERS.values(), "dtf_resnet101", "c2d_swin_large"))
def test_every_network_can_be_laid_out(name):
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in create_model(name).state_dict().items()}
    assert rebuild.lay_out(name, {}, shapes) == []
    del shapes[max(shapes)]
    assert len(rebuild.lay_out(name, {}, shapes)) == 1


def test_a_head_for_other_classes_is_saved_as_it_is(tmp_path, model):
    model.backbone.fc = torch.nn.Linear(16, 7)
    save_weights(tmp_path / "a.safetensors", model, {})
    again, _ = load_weights(tmp_path / "a.safetensors")
    assert again.arguments == {**model.arguments, "num_classes": 7}
    video = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(again(video), model.eval()(video))


def test_a_network_that_could_not_be_loaded_is_not_saved(tmp_path, model):
    model.backbone.fc = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 7))
    with pytest.raises(ValueError, match=r"save_weights: backbone.fc.0.bias is not as create_model"):
        save_weights(tmp_path / "a.safetensors", model, {})
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def image_resnet():
    torch.manual_seed(1)
    return timm.create_model("resnet18", num_classes=1000).eval()


def still_video(image: torch.Tensor, frames: int) -> torch.Tensor:
    return image.unsqueeze(2).expand(-1, -1, frames, -1, -1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["dtf_resnet18", "c2d_resnet18"])
def test_inflated_resnet_sees_a_still_video_as_the_image(tmp_path, image_resnet, name, suffix):
    path = tmp_path / f"image{suffix}"
    state = image_resnet.state_dict()
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    model = create_model(name, num_classes=3, clip_length=8, pretrained=str(path)).eval()
    assert model.backbone.fc.out_features == 3
    image = torch.randn(2, 3, 64, 64)
    features = model.backbone.forward_features(model.stem.fold(still_video(image, 8)))
    expected = image_resnet.forward_features(image).repeat_interleave(2, dim=0)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_only_the_frame_at_half_the_stride_passes_the_inflated_stem(tmp_path, image_resnet):
    save_file(image_resnet.state_dict(), tmp_path / "image.safetensors")
    path = str(tmp_path / "image.safetensors")
    model = create_model("dtf_resnet18", clip_length=8, pretrained=path).eval()
    kernel = model.backbone.conv1.weight.unflatten(1, (3, 4))
    assert torch.equal(kernel[:, :, 2], image_resnet.conv1.weight)
    assert not kernel[:, :, [0, 1, 3]].any()


def test_inflated_swin_takes_timm_and_original_names(tmp_path):
    torch.manual_seed(2)
    small = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4, "img_size": 32}
    image_swin = timm.models.swin_transformer.SwinTransformer(**small)
    state = image_swin.state_dict()
    original = {}
    for key, value in state.items():
        if "downsample" in key:
            key = key.replace("layers.1.downsample", "layers.0.downsample")
        original[key.replace("head.fc.", "head.")] = value
    arguments = {key: list(v) if isinstance(v, tuple) else v for key, v in small.items() if key != "img_size"}
    loaded = []
    for number, content in enumerate((state, original)):
        path = tmp_path / f"{number}.pth"
        torch.save({"model": content}, path)
        loaded.append(create_model("dtf_swin_tiny", **arguments, image_size=32, pretrained=str(path)))
    first, second = (model.backbone.state_dict() for model in loaded)
    for key, value in state.items():
        if key.startswith(("patch_embed.norm", "head.")):
            continue
        if key == "patch_embed.proj.weight":
            assert torch.equal(first[key].unflatten(1, (3, 4))[:, :, 2], value)
        else:
            assert torch.equal(first[key], value), key
        assert torch.equal(first[key], second[key]), key


def test_weights_that_do_not_fit_are_named(tmp_path, image_resnet):
    path = tmp_path / "image.safetensors"
    save_file(image_resnet.state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit the backbone: .*layer1.0.conv3.weight.*and \d+ more"):
        create_model("dtf_resnet50", pretrained=str(path))
    with pytest.raises(ValueError, match=r"no ImageNet weights for it"):
        create_model("dtf_tiny", pretrained=True)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        create_model("dtf_resnet18", pretrained=str(tmp_path / "absent.pth"))


def test_weights_that_expand_are_refused(tmp_path, image_resnet):
    """Compressed entries, tensors without numbers, calls that allocate; also in the old format."""
    path = tmp_path / "a.pth"
    torch.save({"x": torch.zeros(1).expand(10**9)}, path)
    with pytest.raises(ValueError, match=r"not a readable weights file: .* without the numbers for it"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(ValueError, match="compressed entries"):
        read_state_dict(path)
    torch.save(image_resnet.state_dict(), path, _use_new_zipfile_serialization=False)
    assert read_state_dict(path).keys() == image_resnet.state_dict().keys()
    old = path.read_bytes()
    start = pickletools_end(old, 3)
    path.write_bytes(old[:start] + b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R." + old[start:])
    with pytest.raises(ValueError, match="something else than tensors and plain data"):
        read_state_dict(path)


def pickletools_end(content, count):
    """Where so many pickles, one after the other, end."""
    file = io.BytesIO(content)
    for _ in range(count):
        pickle.load(file)
    return file.tell()


def test_files_that_are_no_weights_are_refused(tmp_path):
    for name, content in (("a.pth", b"text"), ("a.safetensors", b"text"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a readable weights file"):
            create_model("dtf_resnet18", pretrained=str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no dict of tensors"):
        create_model("dtf_resnet18", pretrained=str(tmp_path / "list.pth"))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_pickle_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, "evil.pth")
    with pytest.raises(ValueError, match="weights file: it holds something else than tensors"):
        create_model("dtf_resnet18", pretrained="evil.pth")
    assert not (tmp_path / "trapped").exists()


def test_a_failed_download_is_one_clear_error(monkeypatch):
    def offline(name: str, pretrained: bool) -> None:
        assert (name, pretrained) == ("resnet18.tv_in1k", True)
        raise FileNotFoundError("cannot reach the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        OSError, match=r"could not get timm's resnet18.tv_in1k: cannot reach the hub\n.*=PATH"
    ):
        create_model("dtf_resnet18", pretrained=True)


def test_imagenet_weights_have_names_that_timm_knows():
    names = {entry.published for entry in _ARCHITECTURES.values()} - {None}
    assert names
    assert names <= set(timm.list_pretrained())
