"""Parameter groups against the authors' code; SGD beside torch's."""

from __future__ import annotations

import torch
from torch import nn

from regard.models.build import create
from regard.training.config import TrainingConfig
from regard.training.optimizer import create_optimizer, parameter_groups


def test_groups_of_a_detector():
    """As in the authors' main.py: everything but the backbone, then the backbone without what is frozen."""
    net = create("detr_resnet18", num_classes=3)
    head, backbone = parameter_groups(net, 1e-4, 1e-5)
    names = {parameter: name for name, parameter in net.named_parameters()}
    body = {names[p] for p in backbone["params"]}
    assert body and all(name.startswith("backbone.body.layer") for name in body)
    assert not any(name.startswith(("backbone.body.layer1", "backbone.body.conv1")) for name in body)
    others = {names[p] for p in head["params"]}
    assert others == {name for name in names.values() if not name.startswith("backbone.")}
    assert (head["lr"], head["initial_lr"], backbone["lr"], backbone["initial_lr"]) == (1e-4, 1e-4, 1e-5, 1e-5)
    assert len(body | others) == sum(p.requires_grad for p in net.parameters())


def test_a_group_without_parameters_is_left_out():
    (group,) = parameter_groups(nn.Linear(2, 1), 0.5, 0.1)
    assert group["lr"] == 0.5 and len(group["params"]) == 2
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2).requires_grad_(False), "head": nn.Linear(2, 1)})
    assert len(parameter_groups(model, 0.5, 0.1)) == 1


def test_a_rate_of_zero_freezes_the_backbone():
    """As `--lr_backbone 0` does in the authors' main.py: weight decay would shrink it else."""
    net = create("detr_resnet18", num_classes=3)
    (head,) = parameter_groups(net, 1e-4, 0.0)
    assert not any(p.requires_grad for p in net.backbone.parameters())
    assert {id(p) for p in head["params"]} == {id(p) for n, p in net.named_parameters() if n[:9] != "backbone."}


def test_what_deit_does_not_decay():
    """timm 0.3.2: biases, 1-D parameters, positions and the class token, but not the distillation token."""
    from regard.models.configs.vit import ViTConfig
    from regard.models.vit import VisionTransformer

    net = VisionTransformer(
        ViTConfig(image_size=32, patch_size=16, embed_dim=8, num_heads=2, depth=1, distilled=True, layer_scale=0.1)
    )
    groups = parameter_groups(net, 1e-3, 1e-3, 0.05, "matrices")
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert decayed == {
        "dist_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", "head.weight", "head_dist.weight",
    }  # fmt: skip
    assert decayed | spared == set(names.values())
    (everything,) = parameter_groups(net, 1e-3, 1e-3, 0.05)
    assert len(everything["params"]) == len(names) and everything["weight_decay"] == 0.05


def test_a_momentum_from_zero_is_torchs():
    """Its first step is that of `torch.optim.SGD`, bit by bit, and so are the others."""
    nets = [nn.Linear(5, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours = create_optimizer(nets[0], TrainingConfig(optimizer="sgd", weight_decay=0.1), fused=False)
    theirs = torch.optim.SGD(nets[1].parameters(), 1e-4, momentum=0.9, weight_decay=0.1)
    for _ in range(4):
        x = torch.randn(6, 5)
        for net, optimizer in zip(nets, (ours, theirs), strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
