"""COCO itself is told from other data in its layout by the number of its training images."""

from regard.data.coco import published


def test_only_many_files_in_train2017_are_coco(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_MANY", 3)
    assert not published.is_published_coco(tmp_path)
    (tmp_path / "train2017").mkdir()
    for number in range(3):
        (tmp_path / "train2017" / f"{number}.jpg").touch()
    assert not published.is_published_coco(tmp_path)
    (tmp_path / "train2017" / "3.jpg").touch()
    assert published.is_published_coco(tmp_path)
    assert not published.is_published_coco(tmp_path / "train2017" / "3.jpg")  # a file that describes data
