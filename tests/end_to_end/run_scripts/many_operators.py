"""Runs many kinds of operators once, forward and backward: none may fail for being watched."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

D = "cuda"


def drawn(*shape, **more):
    return torch.randn(*shape, device=D, requires_grad=True, **more)


# Attention, whose kernels take tensors that are not there.
for dtype in (torch.half, torch.float32):
    for dropout in (0.0, 0.1):
        for causal in (False, True):
            q = drawn(2, 4, 128, 64, dtype=dtype)
            attended = F.scaled_dot_product_attention(q, q, q, is_causal=causal, dropout_p=dropout)
            attended.sum().backward()
q = drawn(2, 4, 128, 64, dtype=torch.half)
mask = torch.zeros(2, 1, 128, 128, device=D, dtype=torch.half)
F.scaled_dot_product_attention(q, q, q, attn_mask=mask).sum().backward()

# Layers that make states of their own.
lstm = nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True, dropout=0.1).to(D)
lstm(drawn(2, 5, 8))[0].sum().backward()
nn.GRU(8, 8).to(D)(drawn(5, 2, 8))[0].sum().backward()
lengths = torch.full((4,), 50), torch.full((4,), 10)
logits = drawn(50, 4, 20).log_softmax(2)
nn.CTCLoss()(logits, torch.randint(1, 20, (4, 10)), *lengths).backward()
nn.EmbeddingBag(100, 8, mode="mean").to(D)(torch.randint(0, 100, (4, 5), device=D)).sum().backward()
encoder = nn.TransformerEncoderLayer(64, 4, batch_first=True).to(D)
encoder(drawn(2, 7, 64)).sum().backward()
encoder.eval()(drawn(2, 7, 64))

for layer in (
    nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.LocalResponseNorm(2), nn.PReLU(),
    nn.RReLU(), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(3), nn.MaxPool2d(2),
    nn.FractionalMaxPool2d(2, output_size=4), nn.LPPool2d(2, 2), nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=2, mode="bicubic"), nn.Conv2d(8, 8, 3, groups=8),
    nn.ConvTranspose2d(8, 8, 2, 2), nn.SyncBatchNorm(8), nn.Dropout2d(), nn.AlphaDropout(),
    nn.Softmax2d(), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.Unfold(3), nn.PixelShuffle(2),
):  # fmt: skip
    layer.to(D)(drawn(2, 8, 16, 16)).sum().backward()
grid = torch.randn(1, 4, 4, 2, device=D)
F.grid_sample(drawn(1, 2, 8, 8), grid, align_corners=False).sum().backward()

# Libraries that report inside whether all went well.
a = drawn(8, 8)
for decomposed in (torch.linalg.svd, torch.linalg.eigh, torch.linalg.qr):
    sum(part.sum() for part in decomposed(a @ a.T + torch.eye(8, device=D))).abs().backward()
for function in (
    torch.linalg.inv, torch.linalg.det, torch.special.erfcx, torch.fft.fft2, torch.median,
    lambda x: torch.linalg.solve(x, x), lambda x: torch.cdist(x, x), lambda x: x.cumprod(0),
    lambda x: x.logcumsumexp(0), lambda x: x.renorm(2, 0, 1), lambda x: x.sort()[0],
    lambda x: x.kthvalue(2)[0],
):  # fmt: skip
    function(a).abs().sum().backward()

for optimizer in (
    torch.optim.Adam([a], fused=True), torch.optim.AdamW([a], foreach=True),
    torch.optim.SGD([a], 0.1, momentum=0.9, fused=True),
):  # fmt: skip
    optimizer.step()
print("all ran")
