"""Asserts that values from the host survive on the card, and what rules answer for the others."""

import torch
import torchvision

D = "cuda"


def of(*values, **kwargs):
    return torch.tensor(values, **kwargs).to(D)


# What came from the host, through copies, casts, views and arithmetic.
x = of(3, 1, 2)
assert x.tolist() == [3, 1, 2]
assert (x * 2 + 1).tolist() == [7, 3, 5]
assert x.to(torch.float16).tolist() == [3, 1, 2]
assert x.float().div(2).tolist() == [1.5, 0.5, 1.0]
assert x.cumsum(0)[-1].item() == 6
assert x.max().item() == 3
assert x.argmax().item() == 0
assert x.sort().indices.tolist() == [1, 2, 0]
assert torch.topk(x, 2).values.tolist() == [3, 2]
assert torch.where(x > 1, x, -x).tolist() == [3, -1, 2]
assert torch.cat([x, x[:1]]).tolist() == [3, 1, 2, 3]
assert torch.stack([x, x])[1].tolist() == [3, 1, 2]
assert x[[0, 2]].tolist() == [3, 2]
assert x[x > 1].tolist() == [3, 2]
assert x.repeat(2).tolist() == [3, 1, 2, 3, 1, 2]
assert x.repeat_interleave(x).tolist() == [3, 3, 3, 1, 2, 2]
assert torch.bincount(x).tolist() == [0, 1, 1, 1]
assert torch.nn.functional.one_hot(x).shape == (3, 4)
assert torch.searchsorted(of(1, 3, 5), of(2, 4)).tolist() == [1, 2]

# Sizes that operators read while they run.
assert torch.nonzero(x > 1).tolist() == [[0], [2]]
assert [t.tolist() for t in torch.unique(of(2, 2, 5), return_counts=True)] == [[2, 5], [2, 1]]
assert torch.unique(of(2, 2, 5), return_inverse=True)[1].tolist() == [0, 0, 1]
assert torch.unique_consecutive(of(1, 1, 2, 1)).tolist() == [1, 2, 1]
assert torch.unique(of([1, 2], [1, 2], [3, 4]), dim=0).tolist() == [[1, 2], [3, 4]]
assert torch.unique(of(True, False), return_counts=True)[1].tolist() == [1, 1]
assert x.masked_select(x > 2).tolist() == [3]

# Kernels that write into what begins as zeros.
groups = of(0, 0, 2)
assert torch.zeros(3, dtype=torch.int64, device=D).scatter_reduce(
    0, groups, torch.ones_like(groups), "sum"
).tolist() == [2, 0, 1]
assert torch.zeros(3, device=D).index_reduce(0, groups, of(2.0, 3, 4), "amax").tolist() == [3, 0, 4]
boxes = of([0.0, 0, 10, 10], [1, 1, 10, 10], [50, 50, 60, 60])
assert torchvision.ops.nms(boxes, of(0.9, 0.8, 0.7), 0.5).tolist() == [0, 2]

# What is made on the card from numbers.
assert torch.arange(3, device=D).tolist() == [0, 1, 2]
assert torch.linspace(0, 1, 3, device=D).tolist() == [0, 0.5, 1]
assert torch.full((2,), 7, device=D).tolist() == [7, 7]
assert torch.eye(2, device=D).tolist() == [[1, 0], [0, 1]]

# In place, through views of one storage: boxes sorted to images, as detectors do.
rows = of([0.0, 1, 0.5], [0.0, 2, 0.5], [1.0, 5, 0.2])
images, counts = rows[:, 0].unique(return_counts=True)
padded = torch.zeros(2, int(counts.max()), 2, device=D)
for image in range(2):
    mine = rows[:, 0] == image
    padded[image, : int(mine.sum())] = rows[mine, 1:]
padded[..., 1].mul_(10)
assert padded.tolist() == [[[1, 5], [2, 5]], [[5, 2], [0, 0]]]

# A freed address that is taken again has no old content.
old = of(*range(1000))
place = old.data_ptr()
del old
fresh = torch.empty(1000, dtype=torch.int64, device=D)
assert fresh.data_ptr() == place
assert fresh[5].item() == 0

# What a known tensor holds is forgotten when the network's values go into it.
network = torch.randn(100, 100, device=D) @ torch.randn(100, 100, device=D)
mixed = torch.ones(100, device=D)
mixed.mul_(network[0])
assert mixed.tolist() == [0.0] * 100

# What depends on the network follows the stated rules.
assert network.sum().item() == 2.0
assert network.argmax().item() == 0
assert (network > 0).nonzero().shape == (100, 2)
assert (network > 0).sum().item() == 100
assert network[network > 0.5].shape == (100,)
assert bool((network.sum() > 1).item())
assert bool(torch.isfinite(network).all())
assert not bool(torch.isnan(network).any())
assert not bool(torch.isinf(network).any())
assert bool(torch.isfinite(torch.empty(1 << 22, device=D).exp()).all())

assert not bool(torch.logical_or(network.isnan(), network.isinf()).any())
assert bool(torch.logical_not(network.sum().isnan()))
layer = torch.nn.Linear(4, 4).to(D)
layer(torch.ones(2, 4, device=D)).sum().backward()
torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0, error_if_nonfinite=True)

# Libraries report by integers that all went well.
torch.linalg.inv(network)
torch.linalg.solve(network, network)
torch.linalg.cholesky(network)

# Sparse gradients have no storage to follow.
embedding = torch.nn.Embedding(1000, 16, sparse=True).to(D)
optimizer = torch.optim.SGD(embedding.parameters(), 0.1)
for _ in range(2):
    optimizer.zero_grad()
    embedding(of(1, 2, 3)).sum().backward()
    optimizer.step()

# What the rules state goes through arithmetic: an integer is 0, a number 2, finite always.
output = torch.nn.Linear(4, 3).to(D)(torch.ones(2, 4, device=D))
count, number = output.argmax(1).sum(), output.sum()
assert count.item() == 0
assert count.clamp(min=1).item() == 1
assert count.clone().clamp_(min=1).float().item() == 1
assert torch.maximum(count, of(3)).item() == 3
assert number.item() == 2
assert number.clamp(max=1).item() == 1
assert abs((1 / (number + 0.5)).item() - 0.4) < 1e-6
assert torch.relu(-number).item() == 2  # a loop that waits for a small loss would end by a 0
assert torch.where(number > 3, number, of(7.0)).item() == 7
assert output.sum(0).clamp(min=1).tolist() == [1, 1, 1]
assert torch.isfinite(1 / (number - number)).item()

# dtypes come out as without interception, on both devices.
for where in ("cpu", D):
    half = torch.ones(4, dtype=torch.half, device=where)
    whole = torch.ones(4, dtype=torch.int64, device=where)
    assert (half * 2.5).dtype == torch.half
    assert (half.sum() * 2.5).dtype == torch.half
    assert (whole * 2.5).dtype == torch.float32
    assert (whole % 3).dtype == torch.int64
    assert (half.sum() % 3.0).dtype == torch.half
    assert (whole > 0.5).dtype == torch.bool
    assert torch.where(whole > 0, half, 0.0).dtype == torch.half
    assert (half + whole.float().sum()).dtype == torch.half
assert torch.remainder(torch.tensor([5.5, 7.0]), 3).tolist() == [2.5, 1.0]
print("all kept")
