"""The catalogue of cards: real GPUs by name, with a source for every figure (`gpus.yaml`)."""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import Any

import yaml

from memplan.device.card import Architecture, Card
from memplan.errors import BadInputError, UnknownNameError

SCHEMA = "memplan.gpus/1"
_HINT = "`memplan gpus` lists all of them."
_VENDOR_WORDS = {"nvidia", "geforce", "tesla", "graphics", "gpu"}


def card(name: str) -> Card:
    """Return the catalogue's card of that name.

    Args:
        name: such as `rtx-3090`, `RTX 3090`, `NVIDIA GeForce RTX 3090`, `a100-80gb` or `h100`.

    Raises:
        BadInputError: the name fits several cards; the message lists them.
        UnknownNameError: no card fits; the message suggests the nearest.
    """
    key = _key(name)
    exact = [one for one in cards() if key in _keys(one)]
    found = exact or [one for one in cards() if key and _is_prefix(name, one.name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(one.name for one in found)
        raise BadInputError(f"Card {name!r} may be several: say {names}. {_HINT}")
    raise UnknownNameError("card", name, (one.name for one in cards()), _HINT)


@functools.cache
def cards() -> tuple[Card, ...]:
    """Return every card of the catalogue, in the order of `gpus.yaml` (by generation)."""
    data = document()
    architectures = _architectures(data["architectures"])
    return tuple(_card(name, entry, architectures) for name, entry in data["cards"].items())


@functools.cache
def document() -> dict[str, Any]:
    """Return `gpus.yaml` as read, with sources and units as its head explains."""
    text = resources.files("memplan.device").joinpath("gpus.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    assert data["schema"] == SCHEMA
    return data


def aliases(name: str) -> tuple[str, ...]:
    """Return the other names under which `card` finds the card called `name` in the catalogue."""
    return tuple(document()["cards"][name].get("aliases", ()))


def _architectures(data: dict[str, Any]) -> dict[tuple[int, int], Architecture]:
    entries = {_capability(key): value for key, value in data.items() if key != "source"}
    return {
        capability: Architecture(compute_capability=capability, **value)
        for capability, value in entries.items()
    }


def architecture(capability: tuple[int, int]) -> Architecture:
    """Return the limits of a compute capability.

    Raises:
        UnknownNameError: the catalogue has no facts about it.
    """
    known = _architectures(document()["architectures"])
    if capability not in known:
        text = "{}.{}".format(*capability)
        names = ("{}.{}".format(*key) for key in known)
        raise UnknownNameError("compute capability", text, names, _HINT)
    return known[capability]


def _card(name: str, data: dict[str, Any], known: dict[tuple[int, int], Architecture]) -> Card:
    return Card(
        name=name,
        title=data["title"],
        device_names=tuple(data["device_names"]),
        capacity_bytes=data["capacity_bytes"],
        context_bytes=data["context_bytes"],
        context_uncertainty_bytes=data["context_uncertainty_bytes"],
        multiprocessors=data["multiprocessors"],
        architecture=known[_capability(data["compute_capability"])],
        bandwidth_bytes_per_second=data["bandwidth_gb_per_second"] * 1e9,
        fp32_flops=data["fp32_tflops"] * 1e12,
        tf32_flops=data["tf32_tflops"] * 1e12,
        fp16_flops=data["fp16_tflops"] * 1e12,
        bf16_flops=data["bf16_tflops"] * 1e12,
        boost_clock_mhz=data["boost_clock_mhz"],
        memory_clock_mhz=data["memory_clock_mhz"],
        l2_bytes=data["l2_bytes"],
        pcie_generation=data["pcie_generation"],
        pcie_lanes=data["pcie_lanes"],
        tdp_watts=data["tdp_watts"],
        source=_source(data["sources"]),
    )


def _source(sources: dict[str, str]) -> str:
    """Say which of the two memory figures is a rule's and not a document's."""
    derived = [group for group in ("capacity", "context") if sources[group].startswith("derived")]
    return ", ".join(["catalogue", *(f"{group} derived" for group in derived)])


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _words(name: str) -> list[str]:
    """Split a name into words: `RTX3090`, `rtx-3090` and `NVIDIA GeForce RTX 3090` agree."""
    spaced = re.sub(r"(?<=[a-z])(?=\d{4})|(?<=\d{4})(?=ti|super)", " ", name.lower())
    words = re.findall(r"[a-z0-9]+", spaced)
    return [word for word in words if word not in _VENDOR_WORDS]


def _key(name: str) -> str:
    return "".join(_words(name))


def _keys(one: Card) -> set[str]:
    """The spellings that mean this card and no other."""
    spellings = {one.name, one.title, *aliases(one.name)}
    shared = {
        device_name
        for other in cards()
        if other.name != one.name
        for device_name in other.device_names
    }
    return {_key(name) for name in spellings | (set(one.device_names) - shared)}


def _is_prefix(name: str, full_name: str) -> bool:
    """Whether `full_name` only adds the memory size to `name`, as a100 and a100-80gb."""
    rest = _words(full_name)[len(_words(name)) :]
    joined = _key(full_name)
    return joined.startswith(_key(name)) and len(rest) == 1 and rest[0].endswith("gb")
