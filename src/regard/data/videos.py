"""Videos and cameras: frames in, frames out, one at a time. PyAV (`av`) decodes and encodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from regard.data.paths import open_file
from regard.data.sources import camera_number
from regard.errors import DataError, MachineError, cause, install_command

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CAMERA_RATE = Fraction(30)  # frames a second, where a camera does not tell
DRAWN_BY = "regard predict"  # kept in drawn pictures and videos, which the next prediction may replace
QUALITY = "20"  # x264's crf: less is better, 18 looks like the original


class Frame(NamedTuple):
    """A frame of a video. image: (H, W, 3) uint8 RGB, upright. seconds: since the first frame."""

    image: np.ndarray
    seconds: Fraction


def read_frames(source: str | Path) -> Iterator[Frame]:
    """Yield the frames of a video file or of `camera:N` (on Linux), decoded one at a time.

    Raises:
        DataError: no such file (I29), or no video in it (I34).
        MachineError: av is not installed, or there is no such camera.
    """
    with _opened(source) as (container, stream):
        stream.thread_type = "AUTO"
        step = 1 / (stream.average_rate or CAMERA_RATE)
        first: Fraction | None = None
        last = -step
        try:
            for frame in container.decode(stream):
                time = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
                if first is None and time is not None:
                    first = time
                seconds = last + step if time is None or first is None else time - first
                last = seconds if seconds > last else last + step  # some files lack times, or repeat one
                yield Frame(_upright(frame), last)
        except _import_av().FFmpegError as error:
            what = f"the video cannot be decoded further ({cause(error)})"
            raise DataError(what, where=source, remedy="copy or download it again", code="I34") from error


def frame_rate(source: str | Path) -> Fraction:
    """Return the mean number of frames a second of a video file; `CAMERA_RATE` of a camera.

    Raises:
        DataError, MachineError: as for `read_frames`.
    """
    if camera_number(source) is not None:
        return CAMERA_RATE
    with _opened(source) as (_, stream):
        return Fraction(stream.average_rate or CAMERA_RATE)


def comment_of(path: Path) -> str | None:
    """Return the comment in a video file; None if it has none, or is no video."""
    try:
        with _opened(path) as (container, _):
            return container.metadata.get("comment")
    except DataError:
        return None


@contextlib.contextmanager
def _opened(source: str | Path) -> Iterator[tuple[Any, Any]]:
    """Open a video file or camera; give its container and its first video stream."""
    av = _import_av()
    number = camera_number(source)
    if number is None:
        open_file(Path(source)).close()
    try:
        # The file protocol alone: a playlist must not fetch what it names.
        options = {"protocol_whitelist": "file"}
        container = av.open(f"/dev/video{number}", format="v4l2") if number is not None else av.open(
            f"file:{Path(source).absolute()}", options=options
        )  # fmt: skip
    except (av.FFmpegError, OSError, ValueError) as error:
        if number is not None:
            what = f"the camera cannot be opened ({cause(error)})"
            raise MachineError(what, where=f"/dev/video{number}", remedy="list cameras: ls /dev/video*") from error
        raise _no_video(source, cause(error)) from error
    with container:
        if not container.streams.video:
            raise _no_video(source, "no video stream")
        yield container, container.streams.video[0]


def _no_video(source: str | Path, why: str) -> DataError:
    return DataError(f"not a video ({why})", where=source, remedy="name an image or a video file", code="I34")


def _upright(frame: Any) -> np.ndarray:
    """Return the pixels as a player shows them: phones store how the camera was held."""
    import numpy as np

    turns = round(frame.rotation / 90) % 4
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


@dataclass
class VideoWriter:
    """Writes pictures of one size to an MP4 file (H.264), without sound. Used with `with`.

    The file appears under its name when it is complete; after an interruption it holds the frames until then.

    Args:
        path: the file to write.
        rate: frames a second.
        comment: kept in the file; none if empty.

    Raises:
        MachineError: av is not installed, or the file cannot be written.
    """

    path: Path
    rate: Fraction
    comment: str = ""
    _container: Any = field(default=None, init=False)
    _stream: Any = field(default=None, init=False)

    @property
    def _part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    def __enter__(self) -> VideoWriter:
        with self._writing():
            self._container = _import_av().open(str(self._part), "w", format="mp4")
            if self.comment:
                self._container.metadata["comment"] = self.comment
        return self

    def add(self, picture: Image.Image, seconds: Fraction) -> None:
        """Append a picture that is shown from `seconds` on; odd sides lose a row or column, as H.264 wants."""
        av = _import_av()
        with self._writing():
            if self._stream is None:
                self._start(av, picture.size)
            frame = av.VideoFrame.from_image(picture.crop((0, 0, self._stream.width, self._stream.height)))
            frame.time_base = self._stream.codec_context.time_base
            frame.pts = round(seconds / frame.time_base)
            self._container.mux(self._stream.encode(frame))

    def _start(self, av: ModuleType, size: tuple[int, int]) -> None:
        codec = "libx264" if "libx264" in av.codec.codecs_available else "mpeg4"
        options = {"crf": QUALITY} if codec == "libx264" else {"q:v": "3"}
        self._stream = self._container.add_stream(codec, rate=self.rate, options=options)
        self._stream.width, self._stream.height = (side - side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        # As fine as files have it, so that frames of any times keep them; MPEG-4 allows 16 bits.
        ticks = self.rate.numerator * max(1, (60_000 if codec == "mpeg4" else 90_000) // self.rate.numerator)
        self._stream.codec_context.time_base = Fraction(1, ticks)

    def __exit__(self, *error: object) -> None:
        with self._writing():
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if self._stream is None:
                self._part.unlink(missing_ok=True)
            else:
                self._part.replace(self.path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (_import_av().FFmpegError, OSError) as error:
            raise MachineError(f"the video cannot be written ({cause(error)})", where=self.path) from error


def _import_av() -> ModuleType:
    """Import PyAV.

    Raises:
        MachineError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MachineError("videos need the package av", remedy=f"install it with: {install_command('av')}") from error
    return av
