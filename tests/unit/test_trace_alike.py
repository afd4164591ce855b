"""Results worked out once for all shapes are those of PyTorch's fake kernels."""

import pytest
import torch

from memplan.trace.alike import AlikeResults
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.layouts import laid_out_on_device
from memplan.trace.memo import FakeTensors, remember

aten = torch.ops.aten
HALF, FLOAT = torch.float16, torch.float32

# Shapes to learn from and to answer for, with sides of 0 and 1 among them.
SHAPES = [(4, 8, 6, 5), (2, 16, 3, 3), (1, 8, 6, 5), (4, 1, 6, 5), (3, 8, 1, 1), (0, 8, 6, 5)]
LAYOUTS = ["contiguous", "channels_last", "narrowed", "narrowed_last", "transposed", "expanded"]


def _image(shape, layout, dtype=HALF):
    """Return an image of a shape, laid out in one of several ways."""
    batch, channels, height, width = shape
    like = torch.empty(shape, dtype=dtype, device=DEVICE)
    wide = torch.empty((batch, channels + 3, height, width), dtype=dtype, device=DEVICE)
    match layout:
        case "channels_last":
            return like.contiguous(memory_format=torch.channels_last)
        case "narrowed":
            return wide[:, 2 : channels + 2]
        case "narrowed_last":
            return wide.contiguous(memory_format=torch.channels_last)[:, 2 : channels + 2]
        case "transposed":
            flipped = (batch, channels, width, height)
            return torch.empty(flipped, dtype=dtype, device=DEVICE).transpose(2, 3)
        case "expanded":
            return like[:, :1].expand(shape)
    return like


def _normalized(image, trains):
    numbers = torch.empty(image.shape[1], device=DEVICE)
    return (image, numbers, numbers, numbers, numbers, trains, 0.1, 1e-5)


CALLS = {
    "silu_backward": lambda a, b: (aten.silu_backward.default, (a, b), {}),
    "sigmoid_backward": lambda a, b: (aten.sigmoid_backward.default, (a, b), {}),
    "add": lambda a, b: (aten.add.Tensor, (a, b), {}),
    "add of float": lambda a, b: (aten.add.Tensor, (a, b.float()), {}),
    "compared": lambda a, b: (aten.gt.Tensor, (a, b), {}),
    "times a number": lambda a, _: (aten.mul.Tensor, (a, 2.5), {}),
    "chosen": lambda a, b: (aten.where.self, (a > 0, a, b), {}),
    "cast": lambda a, _: (aten._to_copy.default, (a,), {"dtype": FLOAT}),
    "cast and laid out": lambda a, _: (
        aten._to_copy.default,
        (a,),
        {"dtype": FLOAT, "memory_format": torch.channels_last},
    ),
    "cloned": lambda a, _: (aten.clone.default, (a,), {}),
    "normalized": lambda a, _: (aten.cudnn_batch_norm.default, _normalized(a, True), {}),
    "normalized, in evaluation": lambda a, _: (
        aten.cudnn_batch_norm.default,
        _normalized(a, False),
        {},
    ),
}


def _specs(result):
    outputs = result if isinstance(result, tuple | list) else [result]
    return [
        (tuple(one.shape), one.stride(), one.storage_offset(), one.dtype, one.fake_device)
        for one in outputs
    ]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_answered_is_what_the_fake_kernel_says(name):
    """Whatever shape it was learnt from: every pair of layouts, sides of 0 and 1 included."""
    num_answered = 0
    with fake_cuda() as mode:
        make = FakeTensors(mode)
        for one_layout in LAYOUTS:
            for other_layout in LAYOUTS:
                alike = AlikeResults()
                for shape in (*SHAPES, *SHAPES[::-1]):
                    overload, args, kwargs = CALLS[name](
                        _image(shape, one_layout), _image(shape, other_layout)
                    )
                    truth = laid_out_on_device(overload, args, overload(*args, **kwargs))
                    outputs = list(truth) if isinstance(truth, tuple | list) else [truth]
                    answered = alike.results(overload, args, kwargs)
                    if answered is None:
                        known = remember(overload, truth, outputs, args, None)
                        if known is not None:
                            alike.learn(overload, args, kwargs, known)
                        continue
                    made = answered.packed(answered.make_outputs(make, args))
                    num_answered += 1

                    assert _specs(truth) == _specs(made), (one_layout, other_layout, shape)
    assert num_answered > 10 or name == "cast and laid out"


def test_operators_that_move_elements_are_not_answered():
    """What a sum, a view or a convolution gives follows from more than sizes."""
    alike = AlikeResults()
    with fake_cuda():
        image = _image((4, 8, 6, 5), "contiguous")
        for overload, args in (
            (aten.sum.dim_IntList, (image, [1])),
            (aten.view.default, (image, [4, 240])),
            (aten.cat.default, ([image, image],)),
        ):
            result = overload(*args)
            known = remember(overload, result, [result], args, None)
            alike.learn(overload, args, {}, known)

            assert alike.results(overload, args, {}) is None


def test_fake_tensors_made_by_copying_are_as_pytorchs_own():
    """Device, mode and every attribute that PyTorch's constructor sets."""
    with fake_cuda() as mode:
        make = FakeTensors(mode)
        guard = torch._C._DisableTorchDispatch()
        bare = [torch.empty(3, 2, device="meta") for _ in range(2)]
        first, second = (make(one, DEVICE) for one in bare)
        del guard

        assert vars(first) == vars(second)
        assert type(first) is type(second)
        assert second.device == DEVICE
        assert (second + second).device == DEVICE
        assert second.is_cuda
