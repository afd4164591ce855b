"""Run in a child on a phantom card: every kind of operator once. Prints what failed, as JSON."""

import json
import sys

import torch
import torchvision
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from memplan.phantom import control

DEVICE = "cuda"
half, real = torch.float16, torch.float32


def _data(*sizes, dtype=real):
    return torch.randn(*sizes, device=DEVICE, dtype=dtype, requires_grad=True)


matrix = torch.randn(1000, 1000, device=DEVICE)
index = torch.randint(0, 1000, (5000,), device=DEVICE)
mask = matrix > 0
maps = _data(4, 64, 32, 32)
small = torch.eye(8, device=DEVICE)
flat = matrix.view(-1)


def _sparse():
    return torch.eye(8).to_sparse_csr().cuda()


def plain():
    yield "add", lambda: matrix + matrix
    yield "exp", matrix.exp
    yield "sum", lambda: [matrix.sum(), matrix.sum(0), matrix.mean(1)]
    yield "item", lambda: matrix.sum().item()
    yield "sort", lambda: [matrix.sort(), flat.sort(), flat.argsort(stable=True)]
    yield "topk", lambda: [matrix.topk(10), flat.topk(1000)]
    yield "nonzero", mask.nonzero
    yield "masked_select", lambda: matrix[mask]
    ones = torch.zeros(5000, device=DEVICE)
    yield "index_put", lambda: matrix.index_put((index, index), ones)
    yield "accumulate", lambda: matrix.index_put((index, index), ones, accumulate=True)
    yield "cumsum", lambda: [matrix.cumsum(0), flat.cumsum(0)]
    yield "unique", lambda: [index.unique(), index.unique_consecutive(return_counts=True)]
    yield "bincount", lambda: index.bincount(minlength=10)
    yield "multinomial", lambda: torch.rand(10, 100, device=DEVICE).multinomial(5)
    yield "randperm", lambda: torch.randperm(100000, device=DEVICE)
    yield "histc", lambda: matrix.histc(10)
    yield "median", lambda: [matrix.median(), matrix.kthvalue(3), matrix.mode()]
    yield "complex", lambda: matrix.to(torch.complex64) * 2
    yield "lgamma", lambda: torch.lgamma(matrix)
    yield "compiled at run time", lambda: torch.special.erfcx(matrix)
    yield "print", lambda: str(matrix)


def layers():
    linear = torch.nn.Linear(1000, 500).cuda()
    wide = matrix.clone().requires_grad_()
    yield "embedding", lambda: functional.embedding(index, wide).sum().backward()
    yield "matmul half", lambda: matrix.half() @ matrix.half()
    yield "bmm", lambda: torch.bmm(matrix.view(10, 100, 1000), matrix.view(10, 1000, 100))
    yield "linear", lambda: linear(matrix).sum().backward()
    yield (
        "linear bfloat16",
        lambda: functional.linear(matrix.bfloat16(), linear.weight.bfloat16()),
    )
    yield "cross entropy", lambda: functional.cross_entropy(wide, index[:1000]).backward()
    query = _data(4, 8, 256, 64, dtype=half)
    attend = functional.scaled_dot_product_attention
    yield "attention", lambda: attend(query, query, query).sum().backward()
    bias = torch.zeros(256, 256, device=DEVICE, dtype=half)
    yield "attention with mask", lambda: attend(query, query, query, attn_mask=bias)
    yield "layer norm", lambda: torch.nn.LayerNorm(1000).cuda()(wide).sum().backward()
    yield "group norm", lambda: torch.nn.GroupNorm(4, 64).cuda()(maps).sum().backward()
    yield "batch norm", lambda: torch.nn.BatchNorm2d(64).cuda()(maps).sum().backward()
    last = maps.detach().to(memory_format=torch.channels_last).requires_grad_()
    yield "batch norm nhwc", lambda: torch.nn.BatchNorm2d(64).cuda()(last).sum().backward()
    yield "max pool", lambda: functional.max_pool2d(maps, 2).sum().backward()
    yield "average pool", lambda: functional.avg_pool2d(maps, 2).sum().backward()
    yield "adaptive pool", lambda: functional.adaptive_avg_pool2d(maps, 1).sum().backward()
    yield "nearest", lambda: functional.interpolate(maps, scale_factor=2).sum().backward()
    yield (
        "bilinear",
        lambda: functional.interpolate(maps, scale_factor=2, mode="bilinear").sum().backward(),
    )
    yield "dropout", lambda: functional.dropout(maps).sum().backward()
    yield "gelu", lambda: functional.gelu(maps).sum().backward()
    yield "silu", lambda: functional.silu(maps).sum().backward()
    grid = torch.zeros(4, 8, 8, 2, device=DEVICE)
    yield (
        "grid sample",
        lambda: functional.grid_sample(maps, grid, align_corners=False).sum().backward(),
    )


def _recurrent(kind):
    network = kind(64, 128, 2, dropout=0.1).cuda()
    network(torch.randn(20, 8, 64, device=DEVICE))[0].sum().backward()


def _ctc():
    logits = _data(50, 4, 20).log_softmax(2)
    targets = torch.randint(1, 20, (4, 10), dtype=torch.int32)
    lengths = torch.full((4,), 50, dtype=torch.int32), torch.full((4,), 10, dtype=torch.int32)
    functional.ctc_loss(logits, targets, *lengths).backward()


def _benchmarked():
    with torch.backends.cudnn.flags(benchmark=True):
        functional.conv2d(maps, _data(64, 64, 3, 3), padding=1).sum().backward()


def convolutions():
    yield "conv", lambda: functional.conv2d(maps, _data(64, 64, 3, 3)).sum().backward()
    yield "conv 1x1", lambda: functional.conv2d(maps, _data(64, 64, 1, 1)).sum().backward()
    yield (
        "depthwise",
        lambda: functional.conv2d(maps, _data(64, 1, 3, 3), groups=64).sum().backward(),
    )
    yield (
        "transposed",
        lambda: functional.conv_transpose2d(maps, _data(64, 64, 3, 3)).sum().backward(),
    )
    yield (
        "conv3d",
        lambda: functional.conv3d(_data(2, 8, 8, 16, 16), _data(8, 8, 3, 3, 3)).sum().backward(),
    )
    short = torch.bfloat16
    yield (
        "conv1d bfloat16",
        lambda: functional.conv1d(_data(2, 8, 800, dtype=short), _data(8, 8, 3, dtype=short)),
    )
    yield "conv benchmark", _benchmarked
    yield "lstm", lambda: _recurrent(torch.nn.LSTM)
    yield "gru", lambda: _recurrent(torch.nn.GRU)
    yield "ctc", _ctc


def linear_algebra():
    many = small.expand(100, 8, 8)
    names = "inv svd svdvals cholesky det slogdet qr eigh lu pinv matrix_exp ldl_factor"
    for name in names.split():
        function = getattr(torch.linalg, name)
        yield name, lambda function=function: function(small)
    yield "solve", lambda: torch.linalg.solve(small, small)
    yield "lstsq", lambda: torch.linalg.lstsq(small, small)
    yield "inv many", lambda: torch.linalg.inv(many)
    yield "cholesky many", lambda: torch.linalg.cholesky(many)
    yield "eigvalsh many", lambda: torch.linalg.eigvalsh(many)
    yield "svd many", lambda: torch.linalg.svd(many)
    grown = small.clone().requires_grad_()
    yield "svd backward", lambda: torch.linalg.svdvals(grown).sum().backward()
    yield "dot", lambda: torch.dot(matrix[0], matrix[0])
    yield "fft", lambda: [torch.fft.fft(matrix), torch.fft.rfft(matrix), torch.fft.fft2(matrix)]
    yield "irfft", lambda: torch.fft.irfft(matrix.to(torch.complex64))
    coo = torch.eye(8).to_sparse().cuda()
    yield "sparse mm", lambda: torch.sparse.mm(coo.requires_grad_(), small).sum().backward()
    yield "csr mm", lambda: _sparse() @ small
    yield "csr csr", lambda: _sparse() @ _sparse()
    yield "csr mv", lambda: _sparse() @ small[0]


def _trained(make, *, closed=False):
    network = torch.nn.Sequential(
        torch.nn.Linear(1000, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)
    ).cuda()
    optimizer, scaler = make(list(network.parameters())), torch.amp.GradScaler(DEVICE)

    def forward():
        with torch.autocast(DEVICE, half):
            return network(matrix).sum()

    def closure():
        loss = forward()
        loss.backward()
        return loss

    if closed:
        optimizer.step(closure)
        return
    scaler.scale(forward()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def optimizers():
    optim = torch.optim
    made = {
        "sgd": lambda p: optim.SGD(p, 0.1, momentum=0.9),
        "sgd fused": lambda p: optim.SGD(p, 0.1, momentum=0.9, fused=True),
        "adamw foreach": lambda p: optim.AdamW(p, foreach=True),
        "adamw fused": lambda p: optim.AdamW(p, fused=True),
        "adamw loop": lambda p: optim.AdamW(p, foreach=False),
        "adagrad": optim.Adagrad,
    }
    for name, make in made.items():
        yield name, lambda make=make: _trained(make)
    yield "lbfgs", lambda: _trained(optim.LBFGS, closed=True)


def _graph():
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        matrix * 2
        matrix @ matrix
    graph.replay()


def _streams():
    side, start, end = torch.cuda.Stream(), *(torch.cuda.Event(enable_timing=True),) * 2
    with torch.cuda.stream(side):
        later = matrix + 1
    later.record_stream(torch.cuda.current_stream())
    start.record()
    end.record()
    end.synchronize()
    start.elapsed_time(end)


def machinery():
    body = torch.nn.Linear(1000, 1000).cuda()
    yield "graph", _graph
    yield "streams", _streams
    yield (
        "checkpoint",
        lambda: (
            checkpoint(body, matrix.clone().requires_grad_(), use_reentrant=False).sum().backward()
        ),
    )
    yield "pinned", lambda: torch.randn(100, 100).pin_memory().to(DEVICE, non_blocking=True)
    yield "snapshot", torch.cuda.memory._snapshot
    boxes, scores = torch.rand(100, 4, device=DEVICE), torch.rand(100, device=DEVICE)
    yield "nms", lambda: torchvision.ops.nms(boxes, scores, 0.5)
    yield "roi align", lambda: torchvision.ops.roi_align(maps, torch.rand(5, 5, device=DEVICE), 7)


def main():
    failed, num_run = {}, 0
    for group in (plain, layers, convolutions, linear_algebra, optimizers, machinery):
        for name, run in group():
            num_run += 1
            try:
                run()
                torch.cuda.synchronize()
            except Exception as error:  # noqa: BLE001 (all are reported)
                failed[name] = str(error).splitlines()[0]
    json.dump([num_run, failed, control.missing_calls()], sys.stdout)


main()
