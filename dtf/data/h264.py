"""Frames in memory as a small video file."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_h264(path: Path, frames: np.ndarray, fps: int = 12) -> None:
    """Encode uint8 (N, H, W, 3) RGB frames, H and W even, as H.264 in MP4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: the caller runs one encoder per core. No macroblock tree: with it, x264 was seen to
        # write different bytes for the same small frames from one call to the next.
        stream.options = {"crf": "18", "g": "12", "threads": "1", "x264-params": "mbtree=0"}
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
