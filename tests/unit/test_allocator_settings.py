"""Allocator options are read as PyTorch reads them."""

import pytest

from memplan.device.allocator import AllocatorSettings
from memplan.errors import UsageError

MIB = 1 << 20


def test_options_of_a_string_are_kept():
    """Each key sets its field, blanks do not matter, and the string is remembered."""
    text = " expandable_segments:True, max_split_size_mb : 64,garbage_collection_threshold:0.8"

    settings = AllocatorSettings.parse(text)

    assert settings.expandable_segments
    assert 64 * MIB == settings.max_split_bytes
    assert settings.garbage_collection_threshold == 0.8
    assert text == settings.text


def test_empty_string_gives_the_defaults():
    """No options are PyTorch's defaults."""
    assert AllocatorSettings() == AllocatorSettings.parse("")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("max_split_size_mb:19", ["max_split_size_mb:19", "at least 20"]),
        ("large_segment_size_mb:10", ["large_segment_size_mb:10", "more than 10"]),
        ("max_split_size_mb:24,large_segment_size_mb:32", ["max_split_size_mb:24", "at least 32"]),
        ("garbage_collection_threshold:1.0", ["garbage_collection_threshold:1.0", "below 1"]),
        ("per_process_memory_fraction:1.5", ["per_process_memory_fraction:1.5", "from 0 to 1"]),
        ("roundup_power2_divisions:[64:3]", ["[64:3]", "power of two"]),
        ("roundup_power2_divisions:[3:4]", ["[3:4]", "powers of two"]),
        ("roundup_power2_divisions:0", ["roundup_power2_divisions:0", "power of two"]),
        ("expandable_segments:true", ["expandable_segments:true", "True or False"]),
        ("expandable_segments", ["expandable_segments", "key:value"]),
        ("expandable_segments:[True", ["expandable_segments", "key:value"]),
        ("expandable_segments:True:", ["expandable_segments", "key:value"]),
        ("backend:cudaMallocAsync", ["cudaMallocAsync", "native"]),
        ("max_splits_size_mb:64", ["max_splits_size_mb", "max_split_size_mb"]),
        ("throw_on_cudamalloc_oom:True", ["throw_on_cudamalloc_oom", "2.12"]),
    ],
)
def test_refusal_names_the_option_and_what_is_allowed(text, names):
    """A key or value that PyTorch refuses is refused with its name and the range."""
    with pytest.raises(UsageError) as error:
        AllocatorSettings.parse(text)

    for name in names:
        assert name in str(error.value)


def test_minimum_itself_was_refused_up_to_2_9():
    """`max_split_size_mb:20` is allowed from PyTorch 2.10."""
    assert 20 * MIB == AllocatorSettings.parse("max_split_size_mb:20", (2, 10)).max_split_bytes
    with pytest.raises(UsageError, match="more than 20"):
        AllocatorSettings.parse("max_split_size_mb:20", (2, 9))


def test_some_options_outlive_the_next_string():
    """Expandable segments and the large segment keep their value, the others fall back."""
    before = AllocatorSettings.parse(
        "expandable_segments:True,large_segment_size_mb:32,max_split_size_mb:64"
    )

    after = AllocatorSettings.parse("garbage_collection_threshold:0.5", previous=before)

    assert after.expandable_segments
    assert 32 * MIB == after.large_segment_bytes == after.oversize_slack_bytes
    assert after.max_split_bytes is None


@pytest.mark.parametrize(
    ("requested", "block"),
    [(1, 512), (512, 512), (513, 1024), (1_048_577, 1_049_088), (10_485_759, 10_485_760)],
)
def test_blocks_are_multiples_of_512(requested, block):
    """Without options a request is rounded up to 512 bytes."""
    assert block == AllocatorSettings().block_bytes(requested)


@pytest.mark.parametrize(("version", "block"), [((2, 9), 1_207_959_552), ((2, 10), 1_342_177_280)])
def test_rest_of_a_roundup_list_starts_one_entry_later_since_2_10(version, block):
    """`>` overwrites the last named entry up to PyTorch 2.9 and spares it later."""
    settings = AllocatorSettings.parse("roundup_power2_divisions:[64:8,512:2,1024:4,>:8]", version)

    assert block == settings.block_bytes(1_100_000_000, version)


def test_first_key_of_a_roundup_list_fills_the_lower_entries():
    """Sizes below the first key use its divisions, unnamed entries use none."""
    settings = AllocatorSettings.parse("roundup_power2_divisions:[4:2,32:4]")

    assert (2, 2, 2, 0, 0, 4, *[0] * 10) == settings.roundup_power2_divisions


def test_one_division_did_not_round_at_all_in_2_1():
    """PyTorch 2.0 and 2.1 leave a request as it is with one division."""
    settings = AllocatorSettings.parse("roundup_power2_divisions:1", (2, 1))

    assert settings.block_bytes(1001, (2, 1)) == 1001
    assert settings.block_bytes(1001, (2, 4)) == 1024
