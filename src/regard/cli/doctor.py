"""`regard doctor`: what this machine has and how fast it is."""

from __future__ import annotations

import importlib.metadata
import json as json_text
import platform
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regard import __version__
from regard.cli.groups import app
from regard.errors import cause, install_command

SECONDS = 0.2  # of each measurement
_EXTRA = re.compile(r"""([\w.-]+)(?:\[([\w,-]+)\])?.*;.*extra == ['"]([\w-]+)['"]""")


@app.command
def doctor(*, json: bool = False) -> None:
    """Tell versions, devices, the speed of this machine, free disk space, and which extras are installed. Never fails.

    Args:
        json: print the same as JSON.
    """
    found = {
        "versions": _or_why(_versions),
        "devices": _or_why(_devices),
        "rates": _or_why(_rates),
        "disk": _or_why(_disk),
        "extras": _or_why(_extras),
    }
    print(json_text.dumps(found, indent=1) if json else "\n".join(_lines(found)))


def _or_why(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was found, or why it could not be: a broken part must not hide the others."""
    try:
        return look()
    except Exception as error:  # whatever a broken installation raises
        return {"failed": cause(error)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, Any]:
    packages = ("torch", "torchvision", "numpy", "pillow", "safetensors")
    own = {"regard": __version__, "python": platform.python_version(), "system": platform.platform()}
    return {**own, **{name: _version(name) for name in packages}}


def _devices() -> dict[str, Any]:
    import torch

    from regard.training.distributed import choose_device

    found: dict[str, Any] = {"cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = platform.machine()
    return {**found, "auto": str(choose_device("auto"))}


def _rates() -> dict[str, Any]:
    """Return GFLOP/s of a matrix product and a convolution, GB/s of a copy, and decoded JPEG images a second."""
    import torch

    from regard.training.distributed import choose_device

    rates: dict[str, Any] = {}
    with torch.inference_mode():
        for name in dict.fromkeys(("cpu", choose_device("auto").type)):
            rates[name] = {key: _three_digits(value) for key, value in _compute_rates(name).items()}
    return {**rates, "jpeg_640x480_per_second": _three_digits(_decoding_rate())}


def _compute_rates(name: str) -> dict[str, float]:
    import torch
    from torch.nn import functional

    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(name, lambda: None)
    side = 512 if name == "cpu" else 4096
    matrix = torch.rand(side, side, device=name)
    image, kernel = torch.rand(1, 64, 112, 112, device=name), torch.rand(64, 64, 3, 3, device=name)
    large = torch.rand(2**24 if name == "cpu" else 2**27, device=name)
    other = torch.empty_like(large)
    return {
        "matrix_gflops": _rate(lambda: matrix @ matrix, wait, 2 * side**3 / 1e9),
        "convolution_gflops": _rate(
            lambda: functional.conv2d(image, kernel, padding=1), wait, 2 * 64 * 64 * 9 * 112**2 / 1e9
        ),
        "memory_gb_per_second": _rate(lambda: other.copy_(large), wait, 2 * 4 * large.numel() / 1e9),
    }


def _decoding_rate() -> float:
    import io

    import numpy as np
    from PIL import Image

    from regard.data.images import decode_image

    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return _rate(lambda: decode_image(file.getvalue(), name="noise.jpg"), lambda: None, 1.0)


def _rate(work: Callable[[], object], wait: Callable[[], object], amount: float) -> float:
    """Return `amount` by the seconds of the fastest call. The first call, which sets things up, does not count."""
    work()
    wait()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while best == float("inf") or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - begun)
    return amount / max(best, 1e-9)


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _disk() -> dict[str, Any]:
    usage = shutil.disk_usage(Path.cwd())
    return {"folder": str(Path.cwd()), "free_gb": round(usage.free / 1e9, 1), "total_gb": round(usage.total / 1e9, 1)}


def _extras() -> dict[str, Any]:
    """Return the packages of each extra with their versions, and the command that installs those that are missing."""
    wanted: dict[str, dict[str, str]] = {}  # extra -> package -> requirement, such as scipy>=1.13
    parts: dict[str, list[str]] = {}  # extra -> extras of ours that it consists of
    for line in importlib.metadata.requires("regard") or ():
        if match := _EXTRA.match(line):
            name, inner, extra = match.groups()
            of_extra = wanted.setdefault(extra, {})
            if name == "regard":
                parts[extra] = inner.split(",") if inner else []
            else:
                of_extra[name] = line.partition(";")[0].strip()
    for extra, inner in parts.items():
        for part in inner:
            wanted[extra] |= wanted.get(part, {})
    found: dict[str, Any] = {}
    for extra, requirements in wanted.items():
        versions = {name: _version(name) for name in requirements}
        missing = [name for name, version in versions.items() if version is None]
        # The packages themselves, as the environment may have come from a checkout.
        install = install_command(*(shlex.quote(requirements[name]) for name in missing)) if missing else None
        found[extra] = {"packages": versions, "missing": missing, "install": install}
    return found


def _lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the text: a line for each thing."""
    lines = []
    for section, rows in found.items():
        for name, value in rows.items():
            if section == "extras" and isinstance(value, dict):
                words = [f"{package} {version}" for package, version in value["packages"].items() if version]
                missing = f"missing {', '.join(value['missing'])}: {value['install']}" if value["missing"] else ""
                text = "; ".join(filter(None, (", ".join(words), missing)))
            elif isinstance(value, dict):
                text = ", ".join(f"{key} {rate:g}" for key, rate in value.items())
            else:
                text = "not installed" if value is None else str(value)
            lines.append(f"{section:<9}{name:<24}{text}")
    return lines
