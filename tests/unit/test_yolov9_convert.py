"""Networks made smaller with equal outputs: the auxiliary branch dropped, batch norm merged."""

import pytest
import torch
from memplan_models import yolov9
from memplan_models.yolov9.convert import drop_auxiliary, fuse

# Layers of the small network, and what each was: the index maps of the official notebook.
LAYERS = {
    "t": [*range(22), 29],
    "s": [*range(22), 29],
    "m": [*range(1, 23), 38],
    "c": [*range(1, 23), 38],
    "e": [*range(29), *range(36, 49), 49],
}


def _network(name, nc=3):
    """Return a network in evaluation mode whose weights and norms are all unlike fresh ones."""
    torch.manual_seed(len(name) + ord(name[-1]))
    net = yolov9.build(name, nc=nc).eval()
    for key, tensor in net.state_dict().items():
        if key.endswith("running_var") or (tensor.dim() == 1 and key.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.5, 0.5)
    return net


def _images(side=64):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def _main(net):
    """Return the decoded main branch and its maps."""
    decoded, maps = net(_images())
    several = isinstance(decoded, list)
    return (decoded[-1], maps[-1]) if several else (decoded, maps)


@pytest.mark.parametrize("size", LAYERS)
def test_without_its_auxiliary_branch_a_network_is_the_gelan_of_its_size(size):
    """Entries and shapes are gelan-X's, taken from the layers that the official maps name."""
    net = _network(f"yolov9-{size}")
    small, layers = drop_auxiliary(net).net, drop_auxiliary(net).layers
    gelan = yolov9.build(f"gelan-{size}", nc=3)

    assert LAYERS[size] == list(layers)
    assert {k: v.shape for k, v in gelan.state_dict().items()} == {
        k: v.shape for k, v in small.state_dict().items()
    }


@pytest.mark.parametrize("size", LAYERS)
def test_the_main_branch_is_bit_identical_without_the_auxiliary_one(size):
    """Decoded boxes and maps of gelan-X equal the dual network's main output exactly."""
    net = _network(f"yolov9-{size}")
    gelan = yolov9.build(f"gelan-{size}", nc=3).eval()
    gelan.load_state_dict(drop_auxiliary(net).net.state_dict())
    expected, actual = _main(net), _main(gelan)

    assert torch.equal(expected[0], actual[0])
    assert all(torch.equal(e, a) for e, a in zip(expected[1], actual[1], strict=True))


@pytest.mark.parametrize("name", ["yolov9", "yolov9-cf", "gelan-t", "yolov7-af"])
def test_other_architectures_convert_too(name):
    """Dual, triple and single heads outside the official maps keep their main output."""
    net = _network(name)
    small = drop_auxiliary(net).net

    assert 1 == small.head.branches
    assert torch.equal(_main(net)[0], _main(small)[0])


@pytest.mark.parametrize("size", LAYERS)
def test_merging_the_norms_changes_outputs_by_rounding_only(size):
    """Boxes stay within 0.01 px and scores within 1e-4 of the network with its norms."""
    net = _network(f"yolov9-{size}")
    fused = fuse(drop_auxiliary(net).net)
    difference = (_main(net)[0] - _main(fused)[0]).abs()

    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert 0.01 > difference[:, :4].max()
    assert 1e-4 > difference[:, 4:].max()


def test_merging_in_float64_is_exact_to_the_last_digits():
    """In double precision the two networks differ by 1e-10 at most: the algebra is right."""
    net = _network("gelan-t").double()
    fused = fuse(net)
    with torch.no_grad():
        expected, actual = net(_images().double())[0], fused(_images().double())[0]

    assert 1e-10 > (expected - actual).abs().max()


def test_converting_leaves_the_given_network_alone():
    """Neither step changes the network it was given, nor shares memory with it."""
    net = _network("yolov9-t")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    small = drop_auxiliary(net).net
    fused = fuse(small)
    for tensor in (*small.state_dict().values(), *fused.state_dict().values()):
        tensor.zero_()

    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_fused_state_is_recognised():
    """Only a network with its norms has running statistics."""
    net = _network("gelan-t")

    assert any(name.endswith(".running_mean") for name in net.state_dict())
    assert not any(name.endswith(".running_mean") for name in fuse(net).state_dict())


def test_parameters_of_the_fused_gelan_s_are_the_published_number():
    """yolov9-s deploys with 7.1 M parameters, as the official README prints."""
    net = drop_auxiliary(yolov9.build("yolov9-s")).net

    assert 7.1 == round(sum(p.numel() for p in fuse(net).parameters()) / 1e6, 1)
