"""Exported files: they compute what the network does, say what they are, and serve prediction alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import REPOSITORY, assert_one_line_error, clean_environment, documented
from pocket import TADAFORMER
from torch import nn

import dtf.apply.export
from dtf.apply.export import NAMES, TOLERANCE, export
from dtf.apply.graphs import ServedNetwork, load_network, open_classifier, read_task
from dtf.apply.onnx_file import MESSAGES, check_onnx
from dtf.apply.predictor import Predictor
from dtf.export import main
from dtf.models import DTFBlock, create_model, load_weights, save_weights
from dtf.predict import main as predict
from dtf.runs.checkpoint import describe

SETTINGS = {
    "frame_stride": 2,
    "short_side_px": 40,
    "sampling": {},
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
}
# Few blocks, as exporting takes seconds for each; docs/using.md has figures at full size.
SWIN = {
    "clip_length": 8,
    "image_size": 16,
    "window_size": 2,
    "embed_dim": 16,
    "depths": (2,),
    "num_heads": (2,),
}
# The operators of a 3 x 3 window are in Swin's graph.
RESNET = {"clip_length": 8, "layers": (1, 1, 1, 1), "widths": (8, 8, 8, 8), "kernel_size": 1}
NETWORKS = {
    "dtf_swin_small": SWIN,
    "c2d_tiny": {"clip_length": 4, "widths": (8, 8, 8, 8)},
    "ddf_tiny": {"clip_length": 1, "widths": (8, 8, 8, 8)},
    "sifa_tiny": {"clip_length": 2, "widths": (8, 8, 8, 8), "first_stage": 3, "kernel_size": 1},
    "tada_tiny": {"clip_length": 2, "widths": (8, 8, 8, 8)},
    "tadaformer_base": TADAFORMER | {"clip_length": 2, "image_size": 16, "blocks": 1, "over_time": True},
}


def weights_file(folder: Path, name: str, **arguments) -> Path:
    """A .safetensors file of a network in which every part has an effect."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=5, **arguments)
    for module in network.modules():
        if isinstance(module, DTFBlock):
            nn.init.normal_(module.alpha, std=0.1)
        if isinstance(module, nn.Linear) and "former" in name:  # which starts with small matrices
            nn.init.normal_(module.weight, std=0.5)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            if module.weight is not None:
                nn.init.ones_(module.weight)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    data = SETTINGS | {"clip_length": network.clip_length, "crop_px": 16}
    path = folder / f"{name}.safetensors"
    save_weights(path, network, {"class_names": [f"class {i}" for i in range(5)], "data": data})
    return path


def random_clips(count: int, data: dict) -> torch.Tensor:
    shape = (count, data["clip_length"], data["crop_px"], data["crop_px"], 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def tells_classes_apart(logits: torch.Tensor) -> bool:
    """Whether what differs between clips is far above the tolerance."""
    return bool(logits.std(dim=0).max() > 100 * TOLERANCE * logits.abs().max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with best.ckpt and what the documented command makes of it in exported/."""
    folder = tmp_path_factory.mktemp("exported")
    network, metadata = load_weights(weights_file(folder, "dtf_resnet50", **RESNET))
    data = metadata["data"] | {"root": str(folder)}
    content = {
        "state_dict": {f"network.{key}": value for key, value in network.state_dict().items()},
        "dtf": describe(network, metadata["class_names"], data, {"task": {"name": "classification"}}),
    }
    torch.save(content, folder / "best.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = documented("using.md", "dtf.export checkpoint=best.ckpt  ")
        assert main(arguments[2:]) == 0
    return folder


def test_each_file_computes_what_the_network_does(exported: Path) -> None:
    """The .pt2 file has a test of its own below, in a process without this package."""
    assert sorted(path.name for path in (exported / "exported").iterdir()) == sorted(NAMES.values())
    network, names, data = load_network(exported / "best.ckpt")
    clips = random_clips(5, data)
    wanted = ServedNetwork(network, data["mean"], data["std"])(clips).detach()
    assert tells_classes_apart(wanted)
    assert {read_task(exported / "exported" / name) for name in NAMES.values()} == {"classification"}
    for name in ("model.safetensors", "model.onnx"):
        file = open_classifier(exported / "exported" / name, "cpu")
        assert file.class_names == names
        assert difference(file.logits(clips), wanted) <= TOLERANCE
        assert difference(file.logits(clips[:1]), wanted[:1]) <= TOLERANCE


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree(name: str, tmp_path: Path) -> None:
    path = weights_file(tmp_path, name, **NETWORKS[name])
    written = export(path, tmp_path / "out", ["torch", "onnx"])
    assert [done.path.name for done in written] == ["model.pt2", "model.onnx"]
    network, metadata = load_weights(path)
    clips = random_clips(4, metadata["data"])
    wanted = ServedNetwork(network, SETTINGS["mean"], SETTINGS["std"]).eval()(clips).detach()
    for done in written:
        found = open_classifier(done.path, "cpu", trust=True).logits(clips)
        assert difference(found, wanted) <= TOLERANCE
        assert done.difference <= TOLERANCE
    assert tells_classes_apart(wanted)


def test_normalisation_is_that_of_training(tmp_path: Path) -> None:
    from dtf.data.transforms import normalize

    served = ServedNetwork(nn.Flatten(), SETTINGS["mean"], SETTINGS["std"])
    clips = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    wanted = normalize(clips.permute(0, 4, 1, 2, 3), SETTINGS["mean"], SETTINGS["std"]).flatten(1)
    assert torch.equal(served(clips), wanted)


def test_files_say_what_they_are_and_nothing_of_this_machine(exported: Path) -> None:
    import onnx

    model = onnx.load(exported / "exported" / "model.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", dtf.apply.export.OPSET)]
    # What onnxruntime 1.17 to 1.20 can load: batch norms of images alone, not of matrices.
    assert model.ir_version == 9
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert {ranks[node.input[0]] for node in norms} <= {4}
    with zipfile.ZipFile(exported / "exported" / "model.pt2") as archive:
        [name] = [name for name in archive.namelist() if name.endswith("dtf.json")]
        assert json.loads(archive.read(name)) == about
        texts = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".json"))
    assert about["model"] == "dtf_resnet50"
    assert json.loads(about["data"])["clip_length"] == 8
    assert len(json.loads(about["class_names"])) == 5
    assert about["input"].startswith("video: uint8 (batch, 8 frames, 16, 16, 3 RGB)")
    texts += model.SerializeToString()
    texts += (exported / "exported" / "model.safetensors").read_bytes()
    words = (str(REPOSITORY), "site-packages", "network.py", f"{Path.home()}/", str(exported))
    for word in map(str.encode, words):
        assert word not in texts, word


@pytest.mark.parametrize(
    "part", ["dive.mp4 checkpoint=exported/model.onnx ", "dive.mp4 checkpoint=exported/model.pt2 "]
)
def test_the_documented_predictions(
    exported: Path, part: str, real_video: Path, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(exported)
    shutil.copy(real_video, exported / "dive.mp4")
    assert predict([*documented("using.md", part)[2:], f"output={tmp_path}", "device=cpu", "top=10"]) == 0
    [record] = json.loads((tmp_path / "predictions.json").read_text())
    found = {p["class"]: p["score"] for p in record["predictions"]}
    by_network = Predictor("best.ckpt", device="cpu")("dive.mp4", top=10)
    assert found == pytest.approx(dict(zip(by_network.classes, by_network.scores, strict=True)), abs=1e-5)


@pytest.fixture
def real_video() -> Path:
    from test_predict import VIDEOS

    return VIDEOS[0]


def run_without(modules: list[str], script: str, folder: Path) -> str:
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + script],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documented_server_needs_neither_torch_nor_us(exported: Path, real_video: Path) -> None:
    [script] = re.findall(
        r"^```python\n(import json\n.*?)^```", (REPOSITORY / "docs/using.md").read_text(), re.M | re.S
    )
    shutil.copy(real_video, exported / "dive.mp4")
    printed = run_without(["torch", "dtf"], script, exported)
    name, _, score = printed.strip().rpartition(" ")
    assert name in load_network(exported / "best.ckpt")[1]
    assert 20 <= float(score.rstrip("%")) <= 100


def test_a_torch_graph_needs_torch_alone(exported: Path) -> None:
    _, _, data = load_network(exported / "best.ckpt")
    clips = random_clips(2, data)
    np.save(exported / "clips.npy", clips.numpy())
    script = """
import numpy as np, torch
module = torch.export.load("exported/model.pt2").module()
np.save("logits.npy", module(torch.from_numpy(np.load("clips.npy"))).detach().numpy())
"""
    run_without(["dtf", "timm", "torchvision", "pytorch_lightning", "onnxruntime"], script, exported)
    wanted = open_classifier(exported / "best.ckpt", "cpu").logits(clips)
    assert difference(torch.from_numpy(np.load(exported / "logits.npy")), wanted) <= TOLERANCE


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    path = weights_file(tmp_path, "c2d_tiny", **NETWORKS["c2d_tiny"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.pt2").write_text("an earlier one")
    write = dtf.apply.export.write_program

    def write_other(target, program, description):
        with torch.no_grad():
            next(p for p in program.state_dict.values() if p.dim() == 4).mul_(1.01)
        write(target, program, description)

    monkeypatch.setattr("dtf.apply.export.write_program", write_other)
    with pytest.raises(ValueError, match=r"model.pt2 is not kept: its logits .* allowed are 1e-04"):
        export(path, tmp_path / "out", ["torch"])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.pt2"]
    assert (tmp_path / "out" / "model.pt2").read_text() == "an earlier one"


def test_a_network_that_computes_no_numbers_is_said_so(tmp_path: Path) -> None:
    path = weights_file(tmp_path, "c2d_tiny", **NETWORKS["c2d_tiny"])
    network, metadata = load_weights(path)
    nn.init.constant_(network.backbone.fc.bias, float("nan"))
    save_weights(path, network, metadata)
    with pytest.raises(ValueError, match="own logits on random clips are not finite"):
        export(path, tmp_path / "out", ["torch"])


def test_a_pt2_file_is_not_loaded_unless_trusted(exported: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("torch.export.load", lambda *args, **kwargs: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match=r"can run code .* add trust=true"):
        Predictor(exported / "exported" / "model.pt2")


def external(tensor) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="../../secret")


def graph_with(where: str, change) -> bytes:
    """A small ONNX graph, changed in one of the places where a file can hold a tensor."""
    import onnx
    from onnx import helper

    tensor = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], b"\0" * 8, raw=True)
    change(tensor)
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    inner = helper.make_graph([node], "inner", [], [])
    model = helper.make_model(helper.make_graph([], "g", [], []))
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "attribute":
        model.graph.node.append(node)
    elif where == "list in an attribute":
        model.graph.node.append(helper.make_node("X", [], ["y"], values=[tensor]))
    elif where == "subgraph":
        model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner))
    elif where == "subgraph in a list":
        model.graph.node.append(helper.make_node("X", [], ["y"], branches=[inner]))
    elif where == "function":
        model.functions.append(helper.make_function("d", "f", [], ["y"], [node], []))
    elif where == "default of a function":
        model.functions.append(onnx.FunctionProto(attribute_proto=[helper.make_attribute("value", tensor)]))
    elif where == "training":
        model.training_info.add().algorithm.CopyFrom(inner)
    return model.SerializeToString()


PLACES = ("initializer", "attribute", "list in an attribute", "subgraph", "subgraph in a list", "function",
          "default of a function", "training")  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
def test_onnx_tensors_in_other_files_are_refused(where: str, tmp_path: Path, monkeypatch) -> None:
    """Wherever they are, before a session is made; the key alone is enough, and so is the place alone."""
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *a, **k: pytest.fail("a session was made"))
    changes = (
        external,
        lambda tensor: setattr(tensor, "data_location", 1),
        lambda tensor: tensor.external_data.add(key="location", value="/etc/passwd"),
    )
    path = tmp_path / "x.onnx"
    for change in changes:
        path.write_bytes(graph_with(where, change))
        with pytest.raises(ValueError, match=r"x\.onnx is not opened .* external data") as error:
            open_classifier(path, "cpu")
        assert "\n" not in str(error.value)
    path.write_bytes(graph_with(where, lambda tensor: tensor.dims.append(2**40)))
    with pytest.raises(ValueError, match=r"a tensor of 2\.2e[+]12 numbers in \d+ bytes"):
        open_classifier(path, "cpu")
    path.write_bytes(graph_with(where, lambda tensor: None))
    check_onnx(path)


def test_every_place_of_a_tensor_is_known() -> None:
    """In the definition of the installed ONNX: what leads to a tensor is walked, what does not is not."""
    import onnx

    parts: dict[str, dict[int, str]] = {}
    todo = [onnx.ModelProto.DESCRIPTOR]
    while todo:
        message = todo.pop()
        if message.name not in parts:
            inner = {field.number: field.message_type for field in message.fields if field.message_type}
            parts[message.name] = {number: kind.name for number, kind in inner.items()}
            todo += inner.values()
    leading, before = {"TensorProto", "SparseTensorProto"}, set()
    while leading != before:
        before = set(leading)
        leading |= {name for name, inner in parts.items() if leading & set(inner.values())}
    found = {
        name: {number: kind for number, kind in inner.items() if kind in leading}
        for name, inner in parts.items()
        if name in leading and not name.endswith("TensorProto")
    }
    assert found == MESSAGES


def sparse() -> bytes:
    import onnx

    model = onnx.ModelProto()
    model.graph.sparse_initializer.add().dims.append(10**12)
    return model.SerializeToString()


def nested(times: int) -> bytes:
    """Graphs within attributes of nodes of graphs."""
    content = b""
    for _ in range(times):
        content = message(1, message(5, message(6, content)))
    return message(7, content)


def message(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"hello, this is text", "no protobuf"),
        (b"\xff" * 64, "no protobuf"),
        (b"\x3a\x05ab", "no protobuf"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "no protobuf"),
        (b"\x3b\x3c", "no protobuf"),
        (sparse, "sparse tensors"),
        (lambda: nested(40), "nested more than 100 deep"),
        (b"\x08\x01" * 1001, "more than 1000 parts"),
    ],
)
def test_files_that_are_no_graphs(content, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dtf.apply.onnx_file._MOST_FIELDS", 1000)
    path = tmp_path / "x.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(ValueError, match=message) as error:
        open_classifier(path, "cpu")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_descriptions_without_end_are_one_line(exported: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(exported / "exported" / "model.onnx")
    next(entry for entry in model.metadata_props if entry.key == "data").value = "[" * 100_000
    onnx.save(model, tmp_path / "deep.onnx")
    with pytest.raises(ValueError, match=r"deep.onnx: damaged description: .*nested more than 32 deep"):
        Predictor(tmp_path / "deep.onnx")


def test_files_of_others_and_damaged_ones_are_one_line(exported: Path, tmp_path: Path) -> None:
    import onnx

    whole = (exported / "exported" / "model.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"cut.onnx is not opened as an ONNX graph: it is no protobuf, or a damaged one"
    ):
        Predictor(tmp_path / "cut.onnx")
    model = onnx.load_from_string(whole)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"was not written by `python -m dtf.export`"):
        Predictor(tmp_path / "other.onnx")
    model = onnx.load_from_string(whole)
    next(entry for entry in model.metadata_props if entry.key == "class_names").value = '["only one"]'
    onnx.save(model, tmp_path / "few.onnx")
    with pytest.raises(ValueError, match=r"few.onnx: .* it names 1 classes, its network has 5"):
        Predictor(tmp_path / "few.onnx")
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(ValueError, match=r"text.pt2 is no .pt2 file"):
        Predictor(tmp_path / "text.pt2", trust=True)
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(ValueError, match=r"empty.pt2 cannot be loaded"):
        Predictor(tmp_path / "empty.pt2", trust=True)


@pytest.mark.parametrize(
    ("names", "data", "message"),
    [
        (["a"], {}, "it names 1 classes, its network has 5"),
        (list("abcdef"), {}, "it names 6 classes, its network has 5"),
        ([1, 2, 3, 4, 5], {}, "class_names must be a list of texts"),
        (list("abcde"), {"crop_px": "x"}, "data.crop_px cannot be 'x'"),
        (list("abcde"), {"sampling": 5}, "data.sampling cannot be 5"),
        (list("abcde"), {"mean": "abc"}, "data.mean cannot be 'abc'"),
        (list("abcde"), {"std": [1, 1, None]}, r"data.std cannot be \[1, 1, None\]"),
        (list("abcde"), 5, "data must be settings, got 5"),
    ],
)
def test_what_a_file_says_is_checked(tmp_path: Path, names, data, message: str) -> None:
    network, metadata = load_weights(weights_file(tmp_path, "c2d_tiny", **NETWORKS["c2d_tiny"]))
    data = metadata["data"] | data if isinstance(data, dict) else data
    save_weights(tmp_path / "odd.safetensors", network, {"class_names": names, "data": data})
    with pytest.raises(ValueError, match=rf"odd.safetensors: damaged description: {message}"):
        open_classifier(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("device", ["meta", "tpu", "cuda5", "cuda:x", "cuda:-1", ""])
@pytest.mark.parametrize("name", ["best.ckpt", "exported/model.onnx"])
def test_devices_are_those_documented(exported: Path, name: str, device: str) -> None:
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N"):
        open_classifier(exported / name, device)


def test_a_gpu_that_was_asked_for_is_used_or_it_is_an_error(exported: Path, monkeypatch) -> None:
    import onnxruntime

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"device=cuda:1: torch .* sees 1 GPU here"):
        open_classifier(exported / "best.ckpt", "cuda:1")
    # As with onnxruntime-gpu without CUDA's libraries: its session then falls back to the CPU.
    found = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    start = onnxruntime.InferenceSession
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: found)
    monkeypatch.setattr(
        "onnxruntime.InferenceSession", lambda path, providers: start(path, providers=providers[-1:])
    )
    with pytest.raises(ValueError, match=r"device=cuda: onnxruntime .* could not start CUDA here"):
        open_classifier(exported / "exported" / "model.onnx", "cuda")
    assert open_classifier(exported / "exported" / "model.onnx", "auto").device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=onnx"], "no checkpoint: add checkpoint=PATH"),
        (["checkpoint=x.ckpt", "format=onx"], "there is no format=onx; did you mean onnx?"),
        (["checkpoint=x.ckpt", "fromat=onnx"], "there is no option fromat; did you mean format?"),
        (["checkpoint=x.ckpt", "format=torch"], "there is no checkpoint x.ckpt"),
        (["checkpoint=x.onnx", "format=torch"], "x.onnx is exported already"),
        (["x.ckpt"], "x.ckpt: not an option"),
    ],
)
def test_wrong_input_is_one_line(capsys, arguments: list[str], message: str) -> None:
    assert_one_line_error(main, arguments, message, capsys)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch) -> None:
    find = dtf.apply.export.importlib.util.find_spec
    monkeypatch.setattr(
        "dtf.apply.export.importlib.util.find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(ValueError, match=r"format=onnx needs onnxscript: pip install -e '.\[export\]'"):
        export(tmp_path / "x.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_say_the_task_and_how_outputs_become_scores(tmp_path: Path) -> None:
    network, metadata = load_weights(weights_file(tmp_path, "ddf_tiny", **NETWORKS["ddf_tiny"]))
    path = tmp_path / "many.safetensors"
    save_weights(path, network, metadata | {"task": "many", "activation": "sigmoid"})
    for done in export(path, tmp_path / "exported", ["safetensors", "onnx"]):
        assert read_task(done.path) == "many"
        found = Predictor(done.path, device="cpu")(random_clips(1, metadata["data"])[0].numpy())
        outputs = open_classifier(path, "cpu").logits(torch.from_numpy(found.frames)[None])[0]
        assert found.scores == pytest.approx(
            outputs.sigmoid().sort(descending=True).values.tolist(), rel=1e-4
        )
