"""Shards of a list of images: each process of a job array takes one, without a word to the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

from regard.data.sources import STDIN, is_video
from regard.errors import ConfigError, unknown_name
from regard.prediction.options import JobOptions


class Shard(NamedTuple):
    """One of `parts` parts, numbered from 0."""

    number: int
    parts: int

    def numbers(self, images: int) -> range:
        """Return the places in a list of so many images, from 0. Each image is in one of the shards."""
        return range(self.number, images, self.parts)

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"


def parse_shard(text: str) -> Shard:
    """Return the shard of `I/N`.

    Raises:
        ConfigError: other text (C02), or I is not 0 to N - 1 (C03).
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if found is None:
        what = f"shard={text!r:.60}, expected I/N"
        raise ConfigError(what, remedy="--shard 0/8 for the first of eight processes", code="C02")
    shard = Shard(int(found[1]), int(found[2]))
    if shard.parts == 0:
        raise ConfigError(f"shard={text}, expected at least 1 part", remedy="--shard 0/1", code="C03")
    if shard.number >= shard.parts:
        what = f"shard={text}, expected 0/{shard.parts} to {shard.parts - 1}/{shard.parts}: parts count from 0"
        raise ConfigError(what, code="C03")
    return shard


def check_job_options(job: JobOptions, files: Sequence[str | Path], json_file: Path | None) -> Shard | None:
    """Check how a job is to be done; return the shard of this process, or None if it has all images.

    Args:
        files: all images and videos.
        json_file: of `predict_files`.

    Raises:
        ConfigError: options that contradict each other, or what several processes cannot share (C09); a word is unknown
            (C02); the shard is wrong (C02, C03).
    """
    engines = get_args(get_type_hints(JobOptions)["engine"])
    if job.engine not in engines:
        raise unknown_name("value of engine", str(job.engine), engines, code="C02")
    if job.parquet is not None and json_file is not None:
        remedy = "leave one out; another command may write the other"
        raise ConfigError("--json and --parquet: results have one form", remedy=remedy, code="C09")
    if job.engine == "ray" and job.shard is not None:
        what = "--engine ray divides the images among its machines by itself"
        raise ConfigError(what, remedy=f"leave out --shard {job.shard}", code="C09")
    shard = None if job.shard is None else parse_shard(job.shard)
    alone = next((file for file in files if file == STDIN or is_video(file)), None)
    if alone is not None and (shard is not None or job.engine == "ray"):
        what = "images of several processes are files or addresses, and this is neither"
        raise ConfigError(what, where=alone, remedy="predict for it alone", code="C09")
    return shard
