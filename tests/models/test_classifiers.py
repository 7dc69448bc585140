"""What all classifiers have in common."""

import pytest
import torch

from regard.models.build import create

ONE_OF_EACH = (
    "aa_mnasnet1_0", "aa_resnet20", "aa_wide_resnet16_2", "deit_nano_distilled_patch4_32", "efficientnet_lite0",
    "resnet18", "san10_pairwise",
)  # fmt: skip


@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_new_class_layer_is_not_sure(name, classes):
    """Logits of features of variance 1 deviate by less than 1, however few the classes: the loss begins at chance."""
    torch.manual_seed(0)
    net = create(name, num_classes=classes)
    heads = [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features == classes]
    assert heads
    for head in heads:
        assert head(torch.randn(100, head.in_features)).std() < 1.2
