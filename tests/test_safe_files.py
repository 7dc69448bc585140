"""Files and folders that are complete or absent, and locks."""

import errno
import os
import threading
from pathlib import Path

import pytest

from refusals import refused
from regard.errors import ConfigError
from regard.safe_files import atomic_file, first_free, hold_lock, is_used, make_writable, replace_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    replace_text(path, "old\n")

    def fail(descriptor):
        raise OSError("the machine stops")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="stops"):
            replace_text(path, "new and longer\n")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(OSError) as full, atomic_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as missing, atomic_file(path):
        (tmp_path / "other").read_text()
    assert missing.value.filename == str(tmp_path / "other")
    with pytest.raises(FileNotFoundError) as missing:
        replace_text(tmp_path / "no/folder.json", "")
    assert missing.value.filename == str(tmp_path / "no/folder.json")
    assert path.read_text() == "old\n"
    replace_text(path, "new\r\n")
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"] and path.read_bytes() == b"new\r\n"


def test_a_file_is_flushed_before_its_name_and_its_name_after(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: order.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    replace_text(tmp_path / "a", "text")
    first, second = order
    assert first.startswith(f"{tmp_path}/.a.tmp-") and second == str(tmp_path)


@pytest.mark.parametrize("name", ["found.json", "drawn.JPG", "model.pt", "my_data.zip"])
def test_a_folder_is_not_made_under_the_name_of_a_file(tmp_path, name):
    with refused(ConfigError, tmp_path / name, tmp_path / Path(name).stem, code="C09"):
        make_writable(tmp_path / name)
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    make_writable(tmp_path / name)
    make_writable(tmp_path / "run.2" / "v1.5")


def test_a_lock_has_one_holder_and_leaves_nothing(tmp_path):
    path = tmp_path / "lock"
    inside, most, told = [], [], []

    def work() -> None:
        for _ in range(20):
            with hold_lock(path, on_busy=told.append) as locked:
                assert locked
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80 and max(most) == 1 and list(tmp_path.iterdir()) == []
    with hold_lock(path, on_busy=told.append), pytest.raises(BlockingIOError):

        def refuse(holder: str) -> None:
            assert holder.startswith(f"process {os.getpid()} on ")
            raise BlockingIOError

        with hold_lock(path, on_busy=refuse):
            pass


def test_first_free_name(tmp_path):
    free = []
    for _ in range(3):
        path = first_free(tmp_path / "cat.v1-heads.png")
        path.touch()
        free.append(path.name)
    assert free == ["cat.v1-heads.png", "cat.v1-heads-2.png", "cat.v1-heads-3.png"]
    (tmp_path / "run").mkdir()
    assert first_free(tmp_path / "run", is_used) == tmp_path / "run"
    (tmp_path / "run/a").touch()
    assert first_free(tmp_path / "run", is_used) == tmp_path / "run-2"
