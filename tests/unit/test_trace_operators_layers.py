"""Layers and losses: bytes counted by hand from the kernels' sources."""

import pytest
import torch
from test_trace_operators import A100, asked_by, on_an_a100

from memplan.launches.efficient_attention import EfficientAttention
from memplan.tape import ALLOCATE
from memplan.trace import operators
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.operators import (
    LightMatrixWorkspace,
    MatrixWorkspace,
    Output,
    Release,
    Temporary,
    Workspace,
)
from memplan.trace.operators_attention import (
    attention_of,
    scaled_dot_product_attention,
    select_attention,
)
from memplan.trace.operators_convolution import select_convolution_backend
from memplan.trace.recorder import Recorder

aten = torch.ops.aten
LAST = torch.channels_last


def _empty(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    return torch.empty(shape, device=DEVICE, dtype=dtype).to(memory_format=layout)


def _backend(tensor, weight, *, stride=1, dilation=1, groups=1, transposed=False):
    return select_convolution_backend(
        tensor,
        weight,
        bias=None,
        stride=[stride, stride],
        padding=[1, 1],
        dilation=[dilation, dilation],
        transposed=transposed,
        output_padding=[0, 0],
        groups=groups,
        bias_sizes=None,
    ).name


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_card_convolves_with_cudnn_whatever_the_type(dtype, layout, dilation):
    """With no card PyTorch would not trust cuDNN with bfloat16, nor with dilation."""
    with fake_cuda():
        tensor = _empty(2, 8, 16, 16, dtype=dtype, layout=layout)
        weight = _empty(8, 8, 3, 3, dtype=dtype, layout=layout)

        assert "Cudnn" == _backend(tensor, weight, dilation=dilation)
        assert "CudnnTranspose" == _backend(tensor, weight, transposed=True)


@pytest.mark.parametrize(
    ("dtype", "channels", "stride", "dilation", "expected"),
    [
        (torch.float16, 32, 1, 1, "Cudnn"),
        (torch.float16, 16, 1, 1, "CudaDepthwise2d"),
        (torch.float16, 32, 2, 1, "CudaDepthwise2d"),
        (torch.float16, 256, 2, 1, "Cudnn"),
        (torch.float16, 32, 1, 2, "CudaDepthwise2d"),
        (torch.bfloat16, 32, 1, 1, "CudaDepthwise2d"),
        (torch.float32, 32, 1, 1, "CudaDepthwise2d"),
    ],
)
def test_depthwise_convolutions_go_to_cudnn_in_half_precision(
    dtype, channels, stride, dilation, expected
):
    """At stride 1 from 32 channels on, at stride 2 only when there are many."""
    with fake_cuda():
        tensor, weight = (
            _empty(4, channels, 56, 56, dtype=dtype),
            _empty(channels, 1, 3, 3, dtype=dtype),
        )
        found = _backend(tensor, weight, stride=stride, dilation=dilation, groups=channels)

    assert expected == found


def test_pytorchs_own_depthwise_kernel_copies_and_wants_no_workspace():
    """An image with holes and a weight with holes are both made contiguous first."""
    with fake_cuda():
        tensor, weight = _empty(2, 8, 9, 9)[..., :8], _empty(8, 1, 3, 4)[..., :3]
        arguments = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 8)
        asked = asked_by(aten.convolution.default, tensor, weight, *arguments)

    assert [Temporary(2 * 8 * 72 * 4), Temporary(8 * 9 * 4), Output(0)] == asked


def test_pytorchs_own_depthwise_kernel_makes_the_weights_gradient_first():
    """It is made whole; the input's is empty until its kernel is launched."""
    with fake_cuda():
        tensor, weight = _empty(2, 8, 8, 8), _empty(8, 1, 3, 3)
        shape = ([0], [1, 1], [1, 1], [1, 1], False, [0, 0], 8, [True, True, False])
        asked = asked_by(aten.convolution_backward.default, tensor, tensor, weight, *shape)

    assert [Output(1), Output(0)] == asked


def test_the_gradient_of_a_bias_is_summed_with_a_buffer():
    """After the other gradients: the sum over images and pixels keeps partial results."""
    with fake_cuda():
        gradient, tensor = _empty(8, 16, 128, 128), _empty(8, 4, 128, 128)
        shape = ([16], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, True])
        asked = asked_by(
            aten.convolution_backward.default, gradient, tensor, _empty(16, 4, 3, 3), *shape
        )

    assert [Output, Workspace, Output, Temporary, Temporary] == [type(r) for r in asked]
    assert Output(2) == asked[2]


def test_batch_norm_statistics_of_channels_last_images_are_staged():
    """51,200 pixels a channel make 128 blocks of 32 channels; four numbers a channel and block."""
    with fake_cuda():
        images = _empty(8, 64, 80, 80, dtype=torch.bfloat16, layout=LAST)
        weight = _empty(64)
        stats = [weight] * 4
        asked = asked_by(aten.native_batch_norm.default, images, *stats, True, 0.1, 1e-5)
        calm = asked_by(aten.native_batch_norm.default, images, *stats, False, 0.1, 1e-5)

    staged = [Temporary(4 * 64 * 128 * 4), Temporary(8)]
    assert [Output(0), Output(1), Output(2), *staged] == asked
    assert [Output(0), Output(1), Output(2)] == calm


def test_batch_norm_gradients_of_channels_last_images_follow_their_sums():
    """Two sums a channel, the weights' gradients, staging, then the images' gradient."""
    with fake_cuda():
        images = _empty(8, 64, 80, 80, dtype=torch.bfloat16, layout=LAST)
        one = _empty(64)
        asked = asked_by(
            *(aten.native_batch_norm_backward.default, images, images, one, one, one, one, one),
            *(True, 1e-5, [True, True, True]),
        )

    sums = [Temporary(256), Temporary(256)]
    staged = [Temporary(2 * 64 * 128 * 4), Temporary(8), Release(2)]
    assert [*sums, Output(1), Output(2), *staged, Output(0)] == asked


def test_layer_norm_sums_many_short_rows_by_parts():
    """100,352 rows of 96 make 3136 parts; the gradients allocated first are replaced, and go."""
    with fake_cuda():
        rows = _empty(100_352, 96, dtype=torch.float16)
        weight, stat = _empty(96, dtype=torch.float16), _empty(100_352, 1)
        asked = asked_by(
            aten.native_layer_norm_backward.default,
            *(rows, rows, [96], stat, stat, weight, weight, [True, True, True]),
        )
    first = [Output(0), *[Temporary(192)] * 2, *[Temporary(3136 * 192)] * 2]
    scratch = [Temporary(4 * 96 * 25 * 64), Temporary(8), Release(2)]

    of_weight = [Output(1), *scratch, Release(1, keep=3)]
    assert [*first, *of_weight, Output(2), *scratch, Release(1, keep=2)] == asked


def test_group_norm_keeps_a_scale_and_a_shift_an_image_and_channel():
    """In float32, whatever the images are."""
    with fake_cuda():
        images, weight = _empty(2, 8, 4, 4, dtype=torch.float16), _empty(8, dtype=torch.float16)
        asked = asked_by(aten.native_group_norm.default, images, weight, weight, 2, 8, 16, 4, 1e-5)

    assert [Output(0), Output(1), Output(2), Temporary(64), Temporary(64)] == asked


def test_cross_entropy_of_logits_makes_its_log_sigmoid_first():
    """Unreduced the output is the loss; summed, the loss of every element is one temporary more."""
    with fake_cuda():
        logits = _empty(10, 10)
        each = asked_by(
            aten.binary_cross_entropy_with_logits.default, logits, logits, None, None, 0
        )
        total = asked_by(
            aten.binary_cross_entropy_with_logits.default, logits, logits, None, None, 2
        )

    assert [Temporary(400), Output(0)] == each
    assert [Temporary(400), Temporary(400), Output(0)] == total


def test_a_softmax_copies_what_is_not_contiguous():
    """After its output; the backward copies gradient and result alike."""
    with fake_cuda():
        rows = _empty(8, 16).t()

        assert [Output(0), Temporary(512)] == asked_by(aten._softmax.default, rows, 1, False)
        backward = (rows, _empty(16, 8), 1, torch.float32)
        # The gradient times the result is laid out as the gradient, and copied as that would be.
        assert [Output(0), Temporary(512), Temporary(512)] == asked_by(
            aten._softmax_backward_data.default, *backward
        )
        assert [Output(0), Temporary(512)] == asked_by(
            aten._log_softmax_backward_data.default, *backward
        )


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"),
    [(torch.float16, 1_322_036, 2_185_764), (torch.float32, 3_303_476, 2_185_764)],
)
def test_a_channels_last_batch_norm_asks_for_what_cudnn_was_seen_to_want(dtype, forward, backward):
    """The three sizes known of cuDNN 9.19; NCHW wants none."""
    with fake_cuda():
        image = _empty(16, 64, 160, 160, dtype=dtype)
        channels = [_empty(64)] * 4
        for layout, asked in ((torch.channels_last, 1), (torch.contiguous_format, 0)):
            one = image.to(memory_format=layout)
            ahead = asked_by(aten.cudnn_batch_norm.default, one, *channels, True, 0.1, 1e-5)
            back = asked_by(
                aten.cudnn_batch_norm_backward.default,
                *(one, one, *channels[:3], *channels[:2], 1e-5, _empty(0)),
            )
            assert [Temporary(forward)] * asked == [r for r in ahead if isinstance(r, Temporary)]
            assert [Temporary(backward)] * asked == [r for r in back if isinstance(r, Temporary)]


def test_a_gradient_through_an_activation_keeps_its_layout():
    """A fake kernel would lay it out as the activation's input."""
    with fake_cuda():
        gradient = _empty(2, 4, 8, 8)
        image = _empty(2, 4, 8, 8).to(memory_format=torch.channels_last)
        arguments = (gradient, image, 0.0, 6.0)
        faked = aten.hardtanh_backward.default(*arguments)
        actual = operators.laid_out_on_device(aten.hardtanh_backward.default, arguments, faked)

    assert gradient.stride() == actual.stride() != faked.stride()


def test_where_copies_what_has_another_type():
    """Unlike other element-wise kernels, which cast as they read."""
    with fake_cuda():
        flags, halves = _empty(6, dtype=torch.bool), _empty(6, dtype=torch.float16)

        assert [Temporary(24), Output(0)] == asked_by(aten.where.self, flags, halves, _empty(6))
        assert [Output(0)] == asked_by(aten.add.Tensor, halves, _empty(6))


def test_a_host_tensor_reaches_another_layout_through_a_copy():
    """It lands contiguous on the device, and is laid out there."""
    with fake_cuda():
        weight = torch.empty(4, 4, 3, 3)
        plain, last = weight.to(DEVICE), weight.to(DEVICE, memory_format=LAST)

        assert [Output(0)] == on_an_a100(
            operators.requests(aten._to_copy.default, [weight], [plain])
        )
        assert [Output(0), Temporary(576)] == list(
            operators.requests(aten._to_copy.default, [weight], [last])
        )


def test_rolling_two_dimensions_makes_one_in_between():
    """The first is rolled into a temporary."""
    with fake_cuda():
        assert [Temporary(256), Output(0)] == asked_by(
            aten.roll.default, _empty(8, 8), [1, 1], [0, 1]
        )


def test_a_product_with_a_bias_uses_the_light_interface():
    """Its workspace comes beside the other's; a product of one row goes the plain way."""
    with fake_cuda():
        bias, factor = _empty(8), _empty(8, 8)
        many = asked_by(aten.addmm.default, bias, _empty(4, 8), factor)
        one = asked_by(aten.addmm.default, bias, _empty(1, 8), factor)

    assert [Output(0), MatrixWorkspace(), LightMatrixWorkspace()] == many
    assert [Output(0), MatrixWorkspace()] == one


def test_a_matrix_with_gaps_in_both_directions_is_copied():
    """Transposed ones and those with gaps between rows are read as they are."""
    with fake_cuda():
        gaps, rows = _empty(8, 16)[:, ::2], _empty(8, 16)[:, :8]

        assert [Output(0), MatrixWorkspace()] == asked_by(aten.mm.default, rows, rows.t())
        assert [Output(0), Temporary(256), MatrixWorkspace()] == asked_by(
            aten.mm.default, gaps, rows
        )


@pytest.mark.parametrize(
    ("dtype", "width", "masked", "expected"),
    [
        (torch.float16, 64, False, "flash"),
        (torch.bfloat16, 80, False, "flash"),
        (torch.float32, 64, False, "efficient"),
        (torch.float16, 64, True, "efficient"),
        (torch.float32, 30, False, "math"),
        (torch.float64, 64, False, "math"),
    ],
)
def test_attention_is_chosen_as_on_a_card(dtype, width, masked, expected):
    """Half precision flashes unless it is masked; single precision needs aligned widths."""
    with fake_cuda():
        heads = _empty(2, 12, 197, width, dtype=dtype)
        mask = _empty(197, 197, dtype=dtype) if masked else None

        assert expected == select_attention(heads, heads, heads, mask)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "expected"),
    [
        ((8, 6), torch.float16, 64, "flash"),
        ((7, 5), torch.float16, 64, "efficient"),
        ((7, 5), torch.float16, 60, "math"),
        ((7, 5), torch.float32, 30, "efficient"),
        ((7, 5), torch.bfloat16, 64, "math"),
        ((6, 1), torch.float16, 60, "efficient"),
    ],
)
def test_attention_is_that_of_the_card_recorded_for(capability, dtype, width, expected):
    """Before 8.0 there is no flash attention, and no kernel for bfloat16."""
    with fake_cuda(), attention_of(capability):
        heads = _empty(2, 12, 197, width, dtype=dtype)

        assert expected == select_attention(heads, heads, heads, None)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "masked", "expected"),
    [
        ((9, 0), torch.float16, 256, False, "cudnn"),
        ((9, 0), torch.bfloat16, 64, True, "cudnn"),
        ((9, 0), torch.float16, 264, False, "efficient"),
        ((9, 0), torch.float16, 36, False, "flash"),
        ((9, 0), torch.float32, 64, False, "efficient"),
        ((10, 0), torch.float16, 128, False, "cudnn"),
        ((10, 0), torch.float16, 136, False, "flash"),
        ((12, 0), torch.float16, 64, False, "flash"),
    ],
)
def test_cudnn_comes_first_on_some_cards(capability, dtype, width, masked, expected):
    """Hopper and the B200; as PyTorch 2.11 chose on phantom cards."""
    with fake_cuda(), attention_of(capability):
        heads = _empty(2, 4, 33, width, dtype=dtype)
        mask = _empty(33, 33, dtype=dtype) if masked else None

        assert expected == select_attention(heads, heads, heads, mask)


# Capability, batch, heads, length, keys, width, dropout; cuDNN 9.19's workspaces on phantom cards,
# forward and backward, bytes.
@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        (((9, 0), 16, 12, 50, 50, 64, 0.0), 256, 2496256),
        (((9, 0), 4, 8, 197, 77, 64, 0.0), 256, 1639296),
        (((9, 0), 2, 4, 33, 33, 256, 0.0), 256, 271648),
        (((9, 0), 2, 4, 1, 33, 64, 0.0), 0, 2336),
        (((9, 0), 8, 16, 512, 512, 64, 0.1), 256, 17039616),
        (((10, 0), 16, 12, 197, 197, 64, 0.0), 0, 9834240),
        (((10, 0), 16, 12, 50, 50, 64, 0.0), 0, 5248640),
        (((10, 0), 2, 4, 200, 128, 64, 0.0), 0, 825728),
        (((10, 0), 2, 4, 200, 129, 64, 0.0), 0, 416000),
        (((10, 0), 2, 4, 1, 33, 64, 0.0), 0, 18592),
        (((10, 0), 2, 4, 33, 33, 8, 0.0), 0, 19872),
        (((10, 0), 8, 16, 512, 512, 64, 0.1), 4194432, 21233792),
        (((10, 0), 1, 1, 33, 33, 64, 0.5), 2176, 10756),
    ],
)
def test_cudnn_attention_takes_the_workspace_that_cudnn_says(case, forward, backward):
    """A sum of each row and the query's gradient in float32; on a B200 more for short keys."""
    capability, batch, heads, length, keys, width, dropout = case
    with fake_cuda() as mode, attention_of(capability):
        recorder = Recorder(DEVICE, mode)
        with recorder:
            query = _empty(batch, heads, length, width, dtype=torch.float16).requires_grad_()
            key = _empty(batch, heads, keys, width, dtype=torch.float16).requires_grad_()
            result = scaled_dot_product_attention(query, key, key, dropout_p=dropout)
            with torch.no_grad():
                result.grad_fn(result.detach())
        events = recorder.events()

    assert "ScaledDotProductCudnnAttentionBackward0" == result.grad_fn.name()
    taken = events.requested_bytes[events.kind == ALLOCATE].tolist()
    row_sums, half = 4 * batch * heads * length, 2 * batch * heads * width
    read = [half * length, half * keys]
    made = [8, 8, half * length, row_sums, *([forward] if forward else [])]
    gradients = [half * length, half * keys, half * keys, backward]
    assert [*read, *made, *gradients] == taken


def test_flash_attention_adds_up_the_querys_gradient_in_single_precision():
    """197 rows are rounded up to 256."""
    with fake_cuda():
        heads = _empty(2, 12, 197, 64, dtype=torch.float16)
        grown = heads.requires_grad_()
        result = scaled_dot_product_attention(grown, grown, grown)
        gradients = [heads, heads, heads]
        rows = _empty(2, 197, 12, 64, dtype=torch.float16).transpose(1, 2)
        asked = list(
            operators.requests(
                aten._scaled_dot_product_flash_attention_backward.default,
                [rows, heads, heads, heads, rows],
                gradients,
            )
        )

    assert "ScaledDotProductFlashAttentionBackward0" == result.grad_fn.name()
    row_sums, accumulated = Temporary(4 * 24 * 256), Temporary(4 * 24 * 256 * 64)
    assert [Output(0), Output(1), Output(2), row_sums, accumulated] == asked


def test_attention_in_single_precision_multiplies_gradient_and_output():
    """The product is as large as both; its sums are laid out anew and the rest goes.

    A gradient that lies heads before length is copied first.
    """
    with fake_cuda():
        heads = _empty(2, 12, 197, 64)
        laid_out = _empty(2, 197, 12, 64).transpose(1, 2)
        asked, asked_of_heads = (
            list(
                operators.requests(
                    aten._scaled_dot_product_efficient_attention_backward.default,
                    [gradient, heads, heads, heads],
                    [heads, heads, heads, None],
                )
            )
            for gradient in (laid_out, heads)
        )
    rows = 4 * 2 * 12 * 197
    sums = [Temporary(64 * rows), Temporary(rows), Temporary(rows), Release(2, keep=1)]
    # Four blocks of 64 x 64 sums, each after a header.
    launch = EfficientAttention(heads=24, queries=197, keys=197, width=64, half=False)
    assert (24 * 4 * (64 * 64 * 4 + 16),) == launch.scratch_bytes(A100)
    sums.append(operators.Scratch(launch, launch.BUFFERS[0]))

    assert [Output(0), Output(1), Output(2), *sums] == asked
    assert [Temporary(64 * rows), *asked] == asked_of_heads


def test_autocast_casts_what_attention_reads():
    """The stand-in obeys autocast as the function does that it stands in for."""
    with fake_cuda(), torch.autocast("cuda", dtype=torch.bfloat16):
        heads = _empty(1, 2, 16, 8)

        assert torch.bfloat16 is scaled_dot_product_attention(heads, heads, heads).dtype


def test_suppression_keeps_a_bit_for_every_pair_of_boxes():
    """1000 boxes are 16 blocks of 64, so 16 words each."""
    torchvision = pytest.importorskip("torchvision")
    del torchvision
    with fake_cuda():
        boxes, scores, kept = _empty(1000, 4), _empty(1000), _empty(7, dtype=torch.int64)
        nms = torch.ops.torchvision.nms.default
        asked = on_an_a100(operators.requests(nms, [boxes, scores, 0.5], [kept]))

    assert Temporary(8 * 1000 * 16) in asked
    assert Output(0) == asked[-1]


def test_pooled_regions_read_contiguous_features():
    """Channels-last features are copied after the output."""
    pytest.importorskip("torchvision")
    with fake_cuda():
        features, regions = _empty(1, 8, 16, 16, layout=LAST), _empty(3, 5)
        arguments = [features, regions, 1.0, 7, 7, 2, False]
        pooled = torch.ops.torchvision.roi_align.default
        asked = on_an_a100(operators.requests(pooled, arguments, [_empty(3, 8, 7, 7)]))

    assert [Output(0), Temporary(8192)] == asked
