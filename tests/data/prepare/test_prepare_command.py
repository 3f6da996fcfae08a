"""The command line: faults, help, what is skipped."""

from __future__ import annotations

import json

import pytest
from prepared import A, excluded, kinetics

from dtf.data.prepare import main


def test_errors_are_short_and_say_what_to_do(tmp_path, capsys):
    def fails(*arguments):
        assert main(list(map(str, arguments))) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error[error.index("error: ") :]

    root = kinetics(tmp_path / "k", [("a", A)], {})
    assert "is not a folder" in fails("k400", tmp_path / "missing")
    assert "holds none of the 1 annotated videos" in fails("k400", root)
    assert "no annotation file of any split found" in fails("ssv2", root)
    assert "no annotation file of val found" in fails("k400", root, "--splits", "train,val")
    assert "has train, test, not val" in fails("diving48", root, "--splits", "val")
    assert "--workers must be at least 1" in fails("k400", root, "--workers", 0)
    assert "--out is the folder of a smaller copy" in fails("k400", root, "--out", tmp_path)
    several = fails("k400", root, "--resize", 8, "--crf", 99, "--keyframe-distance", 0)
    assert "3 problems" in several
    (root / "train.csv").write_text("x")
    assert "several annotation files for train" in fails("k400", root)
    (root / "train.csv").unlink()
    (root / "annotations" / "train.csv").write_text("label,youtube_id,time_start,time_end\na,x,1,2\n")
    assert "train.csv line 2: a YouTube id has 11" in fails("k400", root)
    with pytest.raises(SystemExit) as caught:
        main(["k700", str(root)])
    assert caught.value.code == 2


@pytest.mark.slow
def test_a_run_without_any_usable_video_fails_but_reports(tmp_path, capsys):
    root = kinetics(tmp_path / "k", [("a", A)], {})
    (root / f"{A}_000000_000010.mp4").write_bytes(b"")
    assert main(["k400", str(root), "--workers", "1"]) == 1
    assert "error: none of the 1 videos can be used" in capsys.readouterr().err
    assert excluded(root) == {f"{A}_000000_000010": "is empty (0 bytes)"}
    assert not (root / "lists" / "train.txt").exists()


@pytest.mark.slow
def test_bad_rows_can_be_skipped_and_are_reported(tmp_path):
    root = kinetics(tmp_path / "k", [("a", A), ("a", "short"), ("a", A)], {f"{A}_000000_000010.mp4": 1})
    assert main(["k400", str(root), "--workers", "1"]) == 1
    assert main(["k400", str(root), "--workers", "1", "--skip-bad-rows"]) == 0
    report = json.loads((root / "lists" / "report.json").read_text())
    assert report["skipped_rows"]["count"] == 2
    assert "train.csv line 3" in report["skipped_rows"]["examples"][0]


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["ssv2", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("ROOT", "--annotations", "--answers", "--resize", "--keyframe-distance", "--check"):
        assert option in text
    assert "78687.webm" in text
