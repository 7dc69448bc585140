"""Studies of DETR: which networks they train, and on which data."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from command_line import run
from regard.config import apply_overrides
from regard.data.generated.shapes import parse_shapes
from regard.evaluation.detection import criterion_of
from regard.models.build import build
from regard.models.catalog import preset
from regard.recipes import recipe_for
from regard.recipes.detection import DetectionRecipe
from regard.studies.detector_measures import COPIES
from regard.studies.detr import DETR
from regard.studies.plan import plan_runs
from regard.studies.study import Scale, Study


def recipes(study: Study, full: bool = False) -> dict[str, DetectionRecipe]:
    """The settings of each row that trains a DETR."""
    plan = plan_runs(study, Scale(data=study.data, epochs=8), 1, str, None, full)
    found = {}
    for row in study.rows:
        key = plan.keys.get(row.name)
        words = next((one.words for one in plan.trainings if one.key == key), None)
        if words is not None and words[0].startswith("detr"):
            named = words[words.index("--recipe") + 1] if "--recipe" in words else None
            settings = [word for word in words if "=" in word and "=run:" not in word]
            found[row.name] = apply_overrides(recipe_for(words[0], named), settings)
    return found


@pytest.mark.parametrize("name", DETR)
def test_small_scale_fits_its_data(name):
    study = DETR[name]
    data = parse_shapes(study.data)
    for recipe in recipes(study).values():
        assert recipe.start_from == "none" or name == "panoptic_stages"
        assert recipe.model.num_queries >= data.max_objects + 2 * (study.task == "panoptic")
        assert recipe.short_side >= data.size and recipe.model.backbone == "small"


@pytest.mark.parametrize("name", [name for name in DETR if any(row.full for row in DETR[name].rows)])
def test_the_papers_own_row_is_its_recipe(name):
    """The row that reports the 40.6 AP of table 2 is the paper's model and recipe."""
    found = recipes(DETR[name], full=True)
    for row in DETR[name].rows:
        if row.published == 40.6:
            paper = recipe_for("detr_resnet50", "paper")
            assert (found[row.name].model, found[row.name].milestones) == (paper.model, paper.milestones)
    assert all(recipe.model.backbone in ("resnet50", "resnet101") for recipe in found.values())


def test_layers_are_those_of_one_run():
    study = DETR["decoder_layers"]
    plan = plan_runs(study, Scale(data="shapes", epochs=2), 3, str, None, False)
    assert len(set(plan.keys.values())) == 1 and len(plan.trainings) == 3
    recipe = next(iter(recipes(study).values()))
    assert {f"AP_{i + 1}" for i in range(recipe.model.decoder_layers)} <= {row.statistic for row in study.rows}


@pytest.mark.parametrize("name", DETR)
def test_every_part_of_every_network_learns(name):
    """A step without a gradient for some parameter would stop training in several processes."""
    torch.manual_seed(0)
    for row, recipe in recipes(DETR[name]).items():
        config = replace(recipe.model, num_classes=3)
        net = build(config, row).train()
        if recipe.freeze_detector:
            net.freeze_detector()
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[:, 8:40, 8:40] = True
        boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.5, 0.3, 0.4]])
        targets = [{"labels": torch.tensor([0, 2]), "boxes": boxes, **({"masks": masks} if config.masks else {})}]
        output = net([torch.randn(3, 64, 64)], targets)
        criterion = criterion_of(replace(recipe, model=config))
        draw = partial(net.masks, output) if config.masks else None
        criterion.total(criterion(output, targets, masks=draw)).backward()
        missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, (row, missing)


def test_later_findings_come_one_by_one():
    found = list(recipes(DETR["later_findings"]).values())
    sets = [
        {
            name
            for name, on in (
                ("norm", r.model.norm_first), ("focal", r.model.sigmoid), ("anchors", r.model.anchors),
                ("denoising", r.model.denoising_groups > 0), ("groups", r.model.query_groups > 1),
            )
            if on
        }
        for r in found
    ]  # fmt: skip
    assert sets[0] == set() and [len(one) for one in sets] == [0, 1, 2, 3, 4, 5]
    assert all(a < b for a, b in pairwise(sets))
    assert found[-1].model == preset("detr_tiny")


def test_more_objects_than_in_training():
    study = DETR["more_objects"]
    data = parse_shapes(study.data)
    assert COPIES[1] == data.max_objects < COPIES[2] and not data.one_class
    # 20 objects have room: their squares cover less than half of the image.
    assert COPIES[-1] * data.max_scale**2 < 1


def test_generated_images_are_asked_for(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    run(capsys, "study", "more_objects", "--data", str(tmp_path / "mine")).refused(2, "C09", "generated")
    run(capsys, "study", "more_objects", "--data", "digits").refused(2, "C09", "digits")


def test_no_torch_before_a_run():
    code = "import sys, regard.studies.detr; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
