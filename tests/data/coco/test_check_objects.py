"""Objects that are the same, and images with very many."""

from coco_files import change, write_pair
from regard.data.check import check_folder


def test_the_same_box_twice(tmp_path):
    """Of the same image and class alone; the copies are counted, and the place is that of the file."""
    file = write_pair(tmp_path) / "annotations/instances_train.json"

    def copy(document):
        first = document["annotations"][0]
        copies = ({}, {}, {"category_id": 2}, {"image_id": 2}, {"bbox": [5, 5, 20, 21]})
        document["annotations"] += [{**first, "id": 50 + k, **other} for k, other in enumerate(copies)]

    change(file, copy)
    issues = [issue for issue in check_folder(tmp_path).issues if issue.code == "A52"]
    assert [(issue.severity, issue.count) for issue in issues] == [("warn", 3)]  # one is that of the other image
    assert issues[0].places[0] == f"{file}:/annotations/4/bbox"


def test_crowds_may_lie_on_each_other(tmp_path):
    file = write_pair(tmp_path) / "annotations/instances_train.json"
    change(file, lambda document: document["annotations"].append({**document["annotations"][0], "id": 9, "iscrowd": 1}))
    assert not [issue for issue in check_folder(tmp_path).issues if issue.code == "A52"]


def test_more_objects_than_queries(tmp_path):
    file = write_pair(tmp_path) / "annotations/instances_val.json"

    def crowd(document):
        first = document["annotations"][0]
        document["annotations"] += [{**first, "id": 50 + k, "bbox": [5, 5, 20, 21 + k / 10]} for k in range(99)]

    change(file, crowd)
    (issue,) = check_folder(tmp_path).issues
    assert (issue.code, issue.severity) == ("A43", "note") and "101 objects" in issue.what
