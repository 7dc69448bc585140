"""Checkpoints under faults: cut, flipped, killed at every system call, power cut, disk full or forbidden."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import regard
from refusals import refused
from regard.errors import CheckpointError, DivergedError, MachineError, NewerVersionError
from regard.training import checkpoint_writer, checkpoints
from regard.training.checkpoint_writer import save_checkpoint
from regard.training.checkpoints import newest_checkpoint, read_checkpoint

STATE = {"epoch": 3, "history": [{"loss": 0.1 + 0.2, "ap": None}], "categories": ["ship", "Möwe"]}


def tensors_for(step: int) -> dict[str, dict[str, Tensor]]:
    weight = torch.full((4, 3), float(step))
    return {
        "model": {"weight": weight, "bias": weight[0]},
        "optimizer": {"step/weight": torch.tensor(float(step))},
    }


def save(folder: Path, step: int, keep: int = 2, protect: Collection[int] = ()) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_writer, "KEPT", keep)
        return save_checkpoint(folder, step, tensors_for(step), {"step": step}, protect=protect)


def newest_step(folder: Path) -> int:
    """The step that a resume would start from, with its content checked; 0 where there is none."""
    path = newest_checkpoint(folder)
    if path is None:
        return 0
    found = read_checkpoint(path)
    assert found.state == {"step": found.step}
    assert torch.equal(found.tensors["model"]["weight"], tensors_for(found.step)["model"]["weight"])
    return found.step


@pytest.fixture
def quick_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushes take milliseconds each and change nothing that a living machine can see."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# --- content ---


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    part = {
        "float": base,
        "transposed": base.t(),
        "tied": base,
        "slice": base[1:3, ::2],
        "expanded": torch.tensor(2.0).expand(3, 2),
        "negative_zero": torch.tensor([-0.0, 1e-45]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "flag": torch.tensor([True, False, True]),
        "byte": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(3).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "parameter": nn.Parameter(torch.randn(3)),
        "läyer.名": torch.randn(1),
    }
    path = save_checkpoint(tmp_path / "run" / "checkpoints", 12, {"model": part, "ema": {}}, STATE)
    found = read_checkpoint(path)
    assert path.name == "step_12" and found.step == 12 and found.state == STATE
    assert found.tensors["ema"] == {} and found.tensors["model"].keys() == part.keys()
    by_library = safetensors.torch.load_file(path / "model.safetensors")
    for name, tensor in part.items():
        for loaded in (found.tensors["model"][name], by_library[name]):
            assert loaded.dtype == tensor.dtype and loaded.shape == tensor.shape, name
            expected = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(loaded.reshape(-1).view(torch.uint8), expected), name
            if loaded.numel():
                assert loaded.data_ptr() % loaded.element_size() == 0, name
    found.tensors["model"]["float"][0] = 0  # what is read may be trained further


def test_parts_can_be_read_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "optimizer.safetensors").unlink()
    assert read_checkpoint(path, parts=["model"]).tensors.keys() == {"model"}
    with refused(CheckpointError, "'ema'", "model, optimizer", code="K18"):
        read_checkpoint(path, parts=["ema"])


def test_what_cannot_be_saved_leaves_no_trace(tmp_path: Path) -> None:
    save(tmp_path, 1)
    good = {"model": {"a": torch.ones(2)}}
    with refused(DivergedError, "'b'", "'model'", code="T07"):
        save_checkpoint(tmp_path, 2, {"model": {"a": torch.ones(2), "b": torch.tensor([1.0, torch.inf])}}, {})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 2, good, {"loss": torch.ones(1)})
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 2, good, {"loss": float("nan")})
    with pytest.raises(ValueError, match="complex64"):
        save_checkpoint(tmp_path, 2, {"model": {"a": torch.ones(2, dtype=torch.complex64)}}, {})
    with pytest.raises(ValueError, match=r"\.\./model"):
        save_checkpoint(tmp_path, 2, {"../model": {}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


# The first format, as it was written once: what a user saved years ago must stay readable.
GOLDEN_MODEL = (
    b'`\x00\x00\x00\x00\x00\x00\x00{"__metadata__": {"format": "pt"}, '
    b'"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    b" \x00\x00\x80?\x00\x00 \xc0"
)
GOLDEN_STATE = b'{"epoch": 4}'
GOLDEN_MANIFEST = b"""{"schema": 1, "step": 40, "files": {"model.safetensors":
{"size": 112, "sha256": "a1614b0918aa9eee71d0b74e39db726c60e61df3000c08107b0852e906f6e955"},
"state.json": {"size": 12, "sha256": "0bdff41cd28818f01f6251d5edde81a4f5846b61b2fd872e0633efce6ba75e82"}},
"versions": {"regard": "0.1.0"},
"sha256": "f5188ef4aaf45dab0926c3b33015e9f29d6cacf5fdbedfb17158504f2944db35"}"""


def test_schema_1_stays_readable(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(GOLDEN_MODEL)
    (tmp_path / "state.json").write_bytes(GOLDEN_STATE)
    (tmp_path / "manifest.json").write_bytes(GOLDEN_MANIFEST)
    found = read_checkpoint(tmp_path)
    assert (found.step, found.state, found.tensors["model"]["w"].tolist()) == (40, {"epoch": 4}, [1.0, -2.5])


# --- damage ---


def test_every_cut_and_every_flip_is_detected(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {"model": {"w": torch.randn(40, 40)}, "optimizer": {"exp_avg/w": torch.randn(40, 40)}}
    path = save_checkpoint(tmp_path, 5, parts, {"history": list(range(500))})
    cases = 0
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        every = 1 if file.name == "manifest.json" else 64
        for count, place in enumerate(range(0, len(content), every)):
            flipped = bytes([content[place] ^ 1 << count % 8])
            for data in (content[:place], content[:place] + flipped + content[place + 1 :]):
                file.unlink()  # several times as fast as overwriting
                file.write_bytes(data)
                assert damage_found(path, file.name), f"{file.name}, byte {place}: {len(data)} bytes"
                cases += 1
        file.write_bytes(content)
    read_checkpoint(path)
    assert cases > 1500


def damage_found(path: Path, name: str) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return error.code in {"K03", "K04", "K05"} and name in str(error)
    return False


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("damage", "name", "code"),
    [
        (Path.unlink, "manifest.json", "K17"),
        (Path.unlink, "optimizer.safetensors", "K18"),
        (Path.unlink, "state.json", "K18"),
        (empty, "model.safetensors", "K03"),
        (empty, "manifest.json", "K03"),
        (flip, "optimizer.safetensors", "K05"),
        (flip, "manifest.json", "K05"),
    ],
)
def test_damaged_newest_is_skipped(tmp_path: Path, damage: Callable[[Path], None], name: str, code: str) -> None:
    save(tmp_path, 9)
    newest = save(tmp_path, 10)
    damage(newest / name)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(newest)
    assert error.value.code == code and name in str(error.value) and "\n" not in str(error.value)
    with pytest.warns(UserWarning, match=rf"\[{code}\] .*step_10") as record:
        assert newest_step(tmp_path) == 9
    assert len(record) == 1


def rewrite_manifest(path: Path, **changes: object) -> None:
    content = json.loads((path / "manifest.json").read_text()) | changes
    del content["sha256"]
    content["sha256"] = checkpoints.manifest_digest(content)
    (path / "manifest.json").write_text(json.dumps(content))


def test_newer_schema_is_an_error_everywhere(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newer = save(tmp_path, 2)
    rewrite_manifest(newer, schema=2, versions={"regard": "2.3"}, files="another layout")
    for call in (lambda: read_checkpoint(newer), lambda: newest_checkpoint(tmp_path)):
        with refused(NewerVersionError, "2.3", code="K19"):
            call()


def test_crafted_checkpoints_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    for changes in ({"files": {"../x.safetensors": files["state.json"]}}, {"files": 3}, {"schema": "x"}):
        rewrite_manifest(path, **changes)
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path)
        assert error.value.code == "K05"
    for text in ("[" * 100_000, "[]", "null", "\x00", "version https://git-lfs.github.com/spec/v1"):
        (path / "manifest.json").write_text(text)
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path)
        assert error.value.code == "K05" and "manifest.json" in str(error.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "is_finite", lambda tensor: True)
        path = save_checkpoint(tmp_path, 1, {"model": {"w": torch.tensor([torch.nan])}}, {})
    with refused(CheckpointError, "'w'", "step 1", path / "model.safetensors", code="K11"):
        read_checkpoint(path)


def test_paths_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x")
    for name, code in (("absent", "K01"), ("model.pth", "K02"), (".", "K17")):
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(tmp_path / name)
        assert error.value.code == code
    assert newest_checkpoint(tmp_path / "absent") is None
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(MachineError) as caught:
        newest_checkpoint(tmp_path / "model.pth")
    assert caught.value.code == "T06"


# --- which ones stay ---


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_newest_is_by_step_not_by_time_or_name(tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        save(tmp_path, step, keep=9)
    for seconds, step in enumerate((100, 9, 10, 8)):
        os.utime(tmp_path / f"step_{step}", (seconds, seconds))
    (tmp_path / "step_900").mkdir()
    (tmp_path / "step_100").rename(tmp_path / "step_1")
    shutil.copytree(tmp_path / "step_10", tmp_path / "step_999.tmp-1")
    with pytest.warns(UserWarning, match=r"step_900"):
        assert newest_step(tmp_path) == 100


def test_old_ones_go_and_protected_ones_stay(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, protect=[2])
    assert names(tmp_path) == {"step_2", "step_6", "step_7"}
    save(tmp_path, 3, keep=1)  # the run went on from an older step: what was just written stays
    assert names(tmp_path) == {"step_3", "step_7"}


def test_a_rotten_checkpoint_does_not_count(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    flip(tmp_path / "step_3" / "model.safetensors")
    with pytest.warns(UserWarning, match=r"\[K05\] .*step_3"):
        save(tmp_path, 4, keep=2)
    assert names(tmp_path) == {"step_2", "step_3", "step_4"}


def test_same_step_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save_checkpoint(tmp_path, 1, {"model": {}}, {"second": True})
    assert names(tmp_path) == {"step_1"}
    assert read_checkpoint(tmp_path / "step_1").state == {"second": True}


def test_leftovers_of_dead_processes_go(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    for pid in (dead, os.getpid(), os.getppid(), 10**30):
        (tmp_path / f"step_3.tmp-{pid}").mkdir()
    (tmp_path / "step_3.tmp-notes").mkdir()
    save(tmp_path, 4)
    assert names(tmp_path) == {f"step_3.tmp-{os.getppid()}", "step_3.tmp-notes", "step_4"}


# --- crashes ---

CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")


def a_run(folder: Path, acknowledge: Callable[[int], object]) -> None:
    """Saves with everything that can happen in them: first, ordinary, with pruning, the same step again."""
    for step in (1, 2, 3, 3):
        save(folder, step)
        acknowledge(step)


def kill_at_every_call(root: Path) -> list[int]:
    """Leave in `root/1`, `root/2`, … the folder of `a_run` as a kill at its first, second, … system call leaves it.

    One process makes the calls and copies the folder before each, in the midst of each write. It is dead when this
    returns, as a killed one would be.

    Returns:
        The last acknowledged step at each call, and after all of them.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        real = SimpleNamespace(**{name: getattr(os, name) for name in CALLS})
        calls, step, copying = 0, 0, False

        def copy() -> None:
            nonlocal calls, copying
            calls, copying = calls + 1, True
            if (root / "run").exists():
                shutil.copytree(root / "run", root / str(calls))
            real.write(writer, bytes([step]))
            copying = False

        def copied(name: str) -> Callable:
            def call(*arguments, **options):  # type: ignore[no-untyped-def]
                if copying:
                    return getattr(real, name)(*arguments, **options)
                half = 0
                if name == "write":
                    descriptor, data = arguments
                    half = real.write(descriptor, data[: len(data) // 2])
                    arguments = (descriptor, data[half:])
                copy()
                if name == "fsync":
                    return None
                result = getattr(real, name)(*arguments, **options)
                return half + result if name == "write" else result

            return call

        def acknowledge(saved: int) -> None:
            nonlocal step
            step = saved

        try:
            for name in CALLS:
                setattr(os, name, copied(name))
            a_run(root / "run", acknowledge)
            copy()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        acknowledged = list(pipe.read())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return acknowledged


@pytest.mark.usefixtures("quick_flush")
def test_kill_at_every_system_call(tmp_path: Path) -> None:
    steps = kill_at_every_call(tmp_path)
    for call, acknowledged in enumerate(steps, start=1):
        folder = tmp_path / str(call)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a kill leaves nothing damaged under a checkpoint's name
            step = newest_step(folder)
            assert step >= acknowledged, f"killed at call {call}: {step} < {acknowledged}"
            save(folder, 6, keep=1)  # the next run clears what was left
        assert names(folder) == {"step_6"}
    assert len(steps) > 60 and steps[-1] == 3


class Disk:
    """A log of what reaches the disk and of what is flushed, taken where the operating system is called.

    Removal inside of temporary folders is not logged: what it leaves or takes is never a checkpoint.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.log: list[tuple[str, Path, Any]] = []
        self.files: dict[int, Path] = {}
        self.real = SimpleNamespace(open=os.open, write=os.write, mkdir=os.mkdir, rename=os.rename)
        for name in ("open", "write", "mkdir", "rename", "fsync"):
            patch.setattr(os, name, getattr(self, name))

    def note(self, kind: str, path: Path, extra: Any = None) -> None:
        self.log.append((kind, path.relative_to(self.root), extra))

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self.real.mkdir(path, mode)
        self.note("mkdir", path)

    def open(self, path: Path, flags: int, mode: int = 0o777, **options: int) -> int:
        descriptor: int = self.real.open(path, flags, mode, **options)
        self.files[descriptor] = path
        if flags & os.O_CREAT:
            self.note("create", path)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        self.note("write", self.files[descriptor], bytes(data))
        written: int = self.real.write(descriptor, data)
        return written

    def fsync(self, descriptor: int) -> None:
        path = self.files[descriptor]
        self.note("flush_names" if path.is_dir() else "flush_data", path)

    def rename(self, source: Path, target: Path) -> None:
        self.real.rename(source, target)
        self.note("rename", source, target.relative_to(self.root))


def after_power_cut(log: list[tuple], root: Path, names_survive: bool) -> None:
    """Rebuild a disk from its log: the flushed data, and all names or only those in flushed folders."""
    flushed = {path: index for index, (kind, path, _) in enumerate(log) if kind == "flush_names"}
    written: dict[int, bytes] = {}
    safe: dict[int, bytes] = {}
    inodes: dict[Path, int] = {}
    files: dict[Path, int] = {}
    folders: set[Path] = set()
    for index, (kind, path, extra) in enumerate(log):
        if kind == "create":
            inodes[path] = index
            written[index] = safe[index] = b""
        elif kind == "write":
            written[inodes[path]] += extra
        elif kind == "flush_data":
            safe[inodes[path]] = written[inodes[path]]
        if not names_survive and flushed.get(path.parent, -1) < index:
            continue
        if kind == "create":
            files[path] = index
        elif kind == "mkdir":
            folders.add(path)
        elif kind == "rename":
            folders = {moved(name, path, extra) for name in folders}
            files = {moved(name, path, extra): inode for name, inode in files.items()}
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for path, inode in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(safe[inode])


def moved(name: Path, source: Path, target: Path) -> Path:
    return target / name.relative_to(source) if name.is_relative_to(source) else name


def power_cut_states(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """(newest step after a power cut, last acknowledged step) for every moment of a run."""
    marks: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path / "run", patch)
        disk.root.mkdir()
        a_run(disk.root / "checkpoints", lambda step: marks.append((len(disk.log), step)))
    for cut in range(len(disk.log) + 1):
        acknowledged = max((step for moment, step in marks if moment <= cut), default=0)
        for names_survive in (True, False):
            root = tmp_path / "after"
            root.mkdir()
            after_power_cut(disk.log[:cut], root, names_survive)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield newest_step(root / "checkpoints"), acknowledged
            shutil.rmtree(root)


def test_power_cut_at_every_moment(tmp_path: Path) -> None:
    states = list(power_cut_states(tmp_path))
    assert len(states) > 60 and states[-1] == (3, 3)
    assert all(found >= acknowledged for found, acknowledged in states)


@pytest.mark.parametrize("forgotten", ["files", "folders"])
def test_power_cut_finds_a_missing_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    """The model of the power cut is worth something only if it notices."""
    if forgotten == "folders":
        monkeypatch.setattr(checkpoint_writer, "sync", lambda folder: None)
    else:
        monkeypatch.setattr(Disk, "fsync", lambda disk, descriptor: None)
    assert any(found < acknowledged for found, acknowledged in power_cut_states(tmp_path))


# --- a disk that refuses ---


@pytest.mark.usefixtures("quick_flush")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_every_refused_call_is_an_error_and_the_old_one_is_intact(tmp_path: Path, number: int) -> None:
    at_call, swallowed = 0, []
    while True:
        at_call += 1
        folder = tmp_path / str(at_call)
        save(folder, 1)
        save(folder, 2)
        done: list[str] = []

        def refusing(name: str, real: Callable, done: list[str] = done, at_call: int = at_call) -> Callable:
            def call(*arguments, **options):  # type: ignore[no-untyped-def]
                done.append(name)
                if len(done) == at_call:
                    raise OSError(number, os.strerror(number))
                return real(*arguments, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, refusing(name, getattr(os, name)))
            try:
                save(folder, 3)
                swallowed.append(done[at_call - 1 :][:1])
            except MachineError as error:
                full = number in (errno.ENOSPC, errno.EDQUOT)
                assert error.code == ("T05" if full else "T06") and str(folder) in str(error)
                newest = 3 if (folder / "step_3").exists() else 2
                assert f"step {newest}" in error.remedy and f"{folder / f'step_{newest}'}" in error.remedy
        assert newest_step(folder) >= 2 and not (folder / f"step_3.tmp-{os.getpid()}").exists()
        if len(done) < at_call:
            break
    # Making a folder that exists already may fail unnoticed; nothing else may.
    assert at_call > 25 and swallowed == [["mkdir"], []]


def test_replacing_a_checkpoint_that_may_not_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name == "step_1":
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with refused(MachineError, "Permission denied", tmp_path / "step_1.old", code="T06"):
            save(tmp_path, 1)
    assert newest_step(tmp_path) == 1
    save(tmp_path, 2)
    assert names(tmp_path) == {"step_1", "step_2"}


def test_room_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12_300_000))
    monkeypatch.setattr(checkpoint_writer, "_write_file", lambda *arguments: pytest.fail("wrote"))
    with pytest.raises(MachineError) as error:
        save_checkpoint(tmp_path, 2, {"model": {"w": torch.zeros(20_000_000)}}, {})
    assert error.value.code == "T05" and error.value.exit_code == 6
    assert all(part in str(error.value) for part in ("80.1 MB", "12.3 MB", f"{tmp_path / 'step_1'}"))


def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    save(tmp_path, 1)
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        try:
            save_checkpoint(tmp_path, 2, {"model": {"w": torch.zeros(2000)}}, {})
        except MachineError as error:
            os._exit(5 if error.code == "T05" else 1)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert names(tmp_path) == {"step_1"}


def test_unreadable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = Path.read_bytes

    def read(path: Path, number: int) -> bytes:
        if path.name == "model.safetensors":
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path, errno.EACCES))
    with pytest.raises(MachineError) as caught:
        newest_checkpoint(tmp_path)
    assert caught.value.code == "T06"
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path, errno.EIO))
    with pytest.warns(UserWarning, match="K05.*Input/output error"):
        assert newest_checkpoint(tmp_path) is None


# --- the whole package ---

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe_calls(source: str) -> list[str]:
    """What in a source file could run code that came with a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        # The error that torch raises for a file that it refuses has no other home than `pickle`.
        if isinstance(node, ast.Import):
            modules = [alias for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
            found += [alias.name for alias in modules if alias.name != "pickle" or alias.asname]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found += [alias.name for alias in node.names if alias.name != "UnpicklingError"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            found += [node.attr] if node.attr != "UnpicklingError" else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in {
                "eval",
                "exec",
                "yaml.load",
                "yaml.unsafe_load",
                "yaml.full_load",
                "os.system",
                "os.popen",
            }:
                found.append(name)
            if name == "torch.load" and options.get("weights_only") != "True":
                found.append(name)
            safe = {"shell": "False", "allow_pickle": "False", "pickle_module": None}
            found += [option for option, value in safe.items() if options.get(option, value) != value]
    return found


def test_nothing_in_the_package_runs_code_from_files() -> None:
    bad = "import pickle as p, joblib; from pickle import loads; pickle.load(f); eval('1'); yaml.load(f)\n"
    bad += "torch.load(f); torch.load(f, weights_only=False); run(a, shell=True); np.load(f, allow_pickle=True)"
    assert len(unsafe_calls(bad)) == 10
    good = "import pickle; pickle.UnpicklingError; torch.load(f, weights_only=True); m.eval(); yaml.safe_load(f)"
    assert unsafe_calls(good) == []
    root = Path(regard.__file__).parent
    found = {str(path): unsafe_calls(path.read_text(encoding="utf-8")) for path in root.rglob("*.py")}
    assert len(found) > 5 and {path: calls for path, calls in found.items() if calls} == {}
