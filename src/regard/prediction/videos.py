"""Videos and cameras: results frame by frame, and a copy with the results drawn."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regard.data.sources import camera_number
from regard.data.videos import DRAWN_BY, VideoWriter, frame_rate, read_frames
from regard.models.build import Model
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import Prediction, draw, predict_each


class FrameResult(NamedTuple):
    """The result for a frame. seconds: since the first frame. number: of the frame, from 0."""

    result: Prediction
    seconds: Fraction
    number: int


def predict_video(
    net: Model, source: str | Path, options: PredictionOptions, *, batch_size: int, drawn: Path | None = None
) -> Iterator[FrameResult]:
    """Yield the results for the frames of a video file or of `camera:N`, with one batch of frames in memory.

    Args:
        net: a model on its device.
        drawn: MP4 file for the frames with their results drawn, with the times of the source; none if None.

    Raises:
        DataError, MachineError: the video cannot be read or written.
    """
    times: deque[Fraction] = deque()

    def images() -> Iterator[np.ndarray]:
        for frame in read_frames(source):
            times.append(frame.seconds)
            yield frame.image

    with contextlib.ExitStack() as stack:
        # A later prediction may replace what says that it was drawn here. What a camera saw comes only once.
        comment = "" if camera_number(source) is not None else DRAWN_BY
        writer = None if drawn is None else stack.enter_context(VideoWriter(drawn, frame_rate(source), comment))
        results = predict_each(net, images(), options=options, batch_size=batch_size)
        for number, result in enumerate(results):
            seconds = times.popleft()
            if writer is not None:
                writer.add(draw(result, options), seconds)
            yield FrameResult(result, seconds, number)
