"""What the tests of annotation readers share."""

from __future__ import annotations

import json

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def dump(path, value):
    return write(path, json.dumps(value, indent=1))


def records(annotations):
    return list(zip([i.decode() for i in annotations.ids], annotations.labels.tolist(), strict=True))
