"""A network on pictures from its training to its graph: one small run, and what the commands make of it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import REPOSITORY, Outcome, documented
from PIL import Image
from test_train import assert_same

from dtf.data.storage import open_video
from dtf.data.transforms import TestTransform, normalize
from dtf.explain import main as explain
from dtf.export import main as export
from dtf.models import create_model
from dtf.predict import main as predict
from dtf.runs.checkpoint import load_checkpoint

SETTINGS = [
    *("model=ddf_tiny", "model.widths=[8,8,16,16]", "model.stem_width=8", "model.dropout=0.5"),
    *("data=imagefolder", "data.crop_px=32", "data.short_side_px=32", "data.batch_size=4"),
    *("data.num_workers=0", "data.max_bad_fraction=0.3", "data.augment.brightness=0.4"),
    *("trainer=cpu", "trainer.max_epochs=2", "callbacks=none", "callbacks.last.every_n_steps=2"),
]
# A file -> the one that must look the same.
ODD = {"turned.png": "1.png", "palette.png": "1.png", "deep.png": "grey.png", "cmyk.jpg": "1.png"}
BROKEN = {"cut.jpg": "cannot be decoded as a picture", "bomb.png": "has frames of 9000 x 9000 pixels"}


def drawn(label: int, number: int) -> Image.Image:
    """40 x 34 pixels: stripes across or along, in a colour of their own."""
    stripes = np.mgrid[:34, :40][label] // (3 + number) % 2
    colour = 255 - 30 * number, 160, 30 + 40 * number
    return Image.fromarray((stripes[:, :, None] * colour).astype(np.uint8))


def write(folder: Path, label: int) -> None:
    """Three pictures, and in the first class those of all kinds that are met."""
    folder.mkdir(parents=True)
    for number in range(3):
        drawn(label, number).save(folder / f"{number}.png")
    if label:
        return
    picture = drawn(0, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    grey = picture.convert("L")
    grey.save(folder / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) << 8).save(folder / "deep.png")
    picture.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-100])
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder."""
    root = tmp_path_factory.mktemp("pictures") / "root"
    for split in ("train", "val"):
        for label, name in enumerate(("across", "along")):
            write(root / split / name, label)
    return root


@pytest.fixture
def run(command: Callable[..., Outcome], root: Path) -> Path:
    """The folder of an unbroken run, trained once."""
    folder = root.parent / "unbroken"
    if not folder.exists():
        done = command("train.py", *SETTINGS, f"data.root={root}", f"output={folder}")
        assert done.code == 0, done.err
    return folder


def scores(run: Path) -> dict[str, dict[str, str]]:
    """scores.csv by the name of the file: "across/0.png"."""
    rows = list(csv.DictReader((run / "scores.csv").open()))
    found = {"/".join(Path(row["video"]).parts[-2:]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_broken_off_run_goes_on_to_the_same_bits(run: Path, root: Path, command) -> None:
    """13 pictures, 3 whole batches an epoch; stopped in the second epoch at step 5, saved at step 4."""
    arguments = ["train.py", *SETTINGS, f"data.root={root}", f"output={root.parent}/resumed"]
    stopped = command(*arguments, "+callbacks.stop={_target_:engine.StopAtStep,step:5}")
    assert stopped.err == "error: stopped at step 5\n"
    folders = [run, root.parent / "resumed"]
    last = [folder / "checkpoints" / "last.ckpt" for folder in folders]
    checkpoint = load_checkpoint(last[1], weights=False)
    assert (checkpoint.step, checkpoint.epoch) == (4, 1)
    resumed = command(*arguments)
    assert resumed.code == 0, resumed.err
    a, b = (torch.load(path, weights_only=True) for path in last)
    assert a["global_step"] == 6
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(a[key], b[key], key)
    assert (run / "scores.csv").read_text() == (folders[1] / "scores.csv").read_text()


def test_each_picture_counts_once_broken_ones_too(run: Path, root: Path) -> None:
    found = json.loads((run / "results.json").read_text())
    rows = scores(run)
    files = {"/".join(path.parts[-2:]) for path in (root / "val").rglob("*.*")}
    assert found["videos"] == len(files) == 13
    assert set(rows) == files
    assert found["split_is"].startswith("validation split")
    errors = {Path(name).name: row["error"] for name, row in rows.items() if row["error"]}
    assert errors.keys() == BROKEN.keys()
    assert {Path(entry["video"]).name for entry in found["broken_videos"]} == BROKEN.keys()
    replaced = (run / "train.log").read_text()
    for name, reason in BROKEN.items():
        assert f"{name}: {reason}" in errors[name]
        assert f"replaced in training, it cannot be read: {root}/train/across/{name}: {reason}" in replaced
    assert all(row["right"] == "0" for row in rows.values() if row["error"])


def test_odd_pictures_look_like_plain_ones(run: Path) -> None:
    rows = scores(run)
    for odd, plain in ODD.items():
        a, b = (float(rows[f"across/{name}"]["score:across"]) for name in (odd, plain))
        assert a == pytest.approx(b, abs=0.03 if odd == "cmyk.jpg" else 1e-6), odd


def test_what_the_commands_make_of_it(run: Path, root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Predict, also from the exported graph, tells the scores of the evaluation; explain and report draw."""
    monkeypatch.chdir(tmp_path)
    checkpoint = f"checkpoint={run}/checkpoints/best.ckpt"
    pictures = root / "val" / "across"
    rows = {name.removeprefix("across/"): row for name, row in scores(run).items() if "across/" in name}
    assert export([checkpoint, "format=torch"]) == 0
    for file in (checkpoint, "checkpoint=exported/model.pt2"):
        capsys.readouterr()
        trust = ["trust=true"] if file.endswith("pt2") else []
        assert predict([str(pictures), file, *trust, "device=cpu", "picture=false", "output=found"]) == 1
        err = capsys.readouterr().err
        assert all(f"{name}: {reason}" in err for name, reason in BROKEN.items())
        records = json.loads(Path("found/predictions.json").read_text())
        assert len(records) == len(rows)
        for record in records:
            row = rows[Path(record["video"]).name]
            assert bool(record["error"]) is bool(row["error"])
            for best in record["predictions"]:
                assert best["score"] == pytest.approx(float(row[f"score:{best['class']}"]), abs=1e-5)

    assert explain([str(pictures / "turned.png"), checkpoint, "device=cpu", "output=why"]) == 0
    [record] = json.loads(Path("why/explain.json").read_text())
    assert not record["error"]
    assert record["shares"]
    for name in record["pictures"].values():
        with Image.open(Path("why") / name) as image:
            assert min(image.size) > 200

    page = (run / "report.html").read_text("utf-8")
    assert all(name in page for name in BROKEN)
    assert "across/" in page
    assert "along" in page


def test_published_weights_are_tested_by_the_documented_lines(root: Path, tmp_path: Path, command) -> None:
    text = (REPOSITORY / "docs" / "ddf.md").read_text("utf-8")
    [lines] = re.findall(r"^```python\n([^`]*?read_state_dict.*?)^```", text, flags=re.M | re.S)
    small = {"num_classes": 2, "layers": [1, 1, 1, 1], "widths": [8, 8, 16, 16]}
    lines = lines.replace("num_classes=1000", f"**{small}")
    for name in ("imagenet", "ddf_mul_resnet50.pth", "ddf_mul_resnet50.safetensors"):
        path = root if name == "imagenet" else tmp_path / name
        lines = lines.replace(f'"{name}"', repr(str(path)))
    torch.manual_seed(0)
    network = create_model("ddf_mul_resnet50", clip_length=1, **small).eval()
    original = {key.removeprefix("backbone."): value for key, value in network.state_dict().items()}
    torch.save({"state_dict": original}, tmp_path / "ddf_mul_resnet50.pth")
    exec(lines, {})

    given = documented("ddf.md", "eval.py")
    given = [f"checkpoint={tmp_path}/{a.split('=')[1]}" if a.startswith("checkpoint=") else a for a in given]
    here = [f"data.root={root}", "data.num_workers=0", "data.max_bad_fraction=0.3", f"output={tmp_path}/out"]
    done = command(*given, *here, "trainer=cpu")
    assert done.code == 0, done.err
    row = scores(tmp_path / "out")["along/0.png"]
    crop = TestTransform(224, 256, interpolation="bicubic")
    with open_video(root / "val" / "along" / "0.png") as reader:
        [view] = crop.crops(reader.read([0])[0])
    with torch.inference_mode():
        expected = network(normalize(view[None, :, None])).softmax(dim=1)
    assert float(row["score:across"]) == pytest.approx(expected[0, 0].item(), abs=1e-5)
