"""What the battery runs, in order of worth."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from memplan.api import Question
from memplan.device.card import Card
from memplan.spec import LEVER, spec_of

YOLO = ("yolov9-t", "yolov9-s", "yolov9-m", "yolov9-c", "yolov9-e", "gelan-c")
TORCHVISION = (
    "resnet50", "vgg16", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "vit_b_16",
)  # fmt: skip
PEERS = ("memtracker", "accelerate", "lightning", "ultralytics", "official")
KINDS = ("life", "context", "convolutions", "batch_norm", "budget", "peer")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to find out on a card, in a process of its own."""

    kind: str = "life"
    """One of `KINDS`; `budget` runs the predicted largest batch of a smaller card and one more."""
    workload: str = "yolov9-s"
    micro_batch_size: int = 8
    image_size: int = 640
    precision: str = "amp-fp16"
    memory_format: str = "contiguous"
    recompute: str = "none"
    optimizer: str = "SGD"
    allocator: str = ""
    cudnn_benchmark: bool = False
    deterministic: bool = False
    lean: bool = False
    accumulation_steps: int = 1
    budget_gib: int = 0
    """Memory of the smaller card, GiB; 0 where the whole card counts."""
    peer: str = ""
    """Whose batch finder runs, where `kind` is `peer`."""
    group: str = ""
    """What it is for; `--only` matches it as well as the name."""
    most_seconds: int = 150
    """Longer than any run of it should take."""
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of the workload, such as an official checkout's `cfg`."""

    @property
    def name(self) -> str:
        """The case in letters, digits and `._-`, as files are called."""
        workload = str(self.arguments.get("name", self.workload)).replace(":", "-")
        parts = [self.peer] if self.kind == "peer" else [self.kind] if self.kind != "life" else []
        parts += [workload, str(self.image_size)]
        parts += [f"{self.budget_gib}gib"] * bool(self.budget_gib)
        parts += [f"b{self.micro_batch_size}"] * (self.kind != "budget")
        parts += [f"x{self.accumulation_steps}"] * (self.accumulation_steps > 1)
        parts.append(self.precision)
        parts += [self.memory_format] * (self.memory_format != "contiguous")
        parts += ["recompute"] * (self.recompute != "none")
        parts += [self.optimizer] * (self.optimizer != "SGD")
        parts += [self.allocator.replace(":", "-").replace(",", "-")] * bool(self.allocator)
        parts += ["lean"] * self.lean
        parts += ["benchmark"] * self.cudnn_benchmark + ["deterministic"] * self.deterministic
        return "_".join(parts)

    def question(self, card: Card) -> Question:
        """Return the case as a question about a card."""
        arguments = {key: value for key, value in self.arguments.items() if key != "name"}
        return Question(
            workload=self.workload,
            arguments={**arguments, "image_size": self.image_size},
            gpus=(card,),
            capacity_bytes=self.budget_gib << 30 if self.budget_gib else None,
            spec=spec_of({name: value for name, value in vars(self).items() if name in LEVER}),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a checkout's path is this machine's and left out."""
        values = asdict(self)
        values["arguments"].pop("official", None)
        if self.workload.startswith("official:"):
            values["workload"] = "official:PATH"
        return values


def all_cases(official: Path | None = None) -> list[Case]:
    """Return every case, the most valuable first, each once.

    Args:
        official: a checkout of the official repository, whose own step is then run as well.
    """
    found: dict[str, Case] = {}
    for case in (*_truth(), *_breadth(official)):
        found.setdefault(case.name, case)
    return list(found.values())


def matching(cases: list[Case], pattern: str | None) -> list[Case]:
    """Return the cases whose name or group matches a shell pattern, or contains the text."""
    if pattern is None:
        return cases
    return [
        case
        for case in cases
        if pattern in case.name
        or fnmatch.fnmatch(case.name, pattern)
        or fnmatch.fnmatch(case.group, pattern)
    ]


def _truth() -> Iterator[Case]:
    """What decides whether anything else is worth looking at."""
    yield Case(
        workload="yolov9-t", image_size=64, micro_batch_size=1, precision="fp32", group="smoke"
    )
    # How much workspace cuBLASLt takes at 1x1 is assumed, alike in prediction and phantom.
    one = Case(kind="convolutions", group="one-by-one")
    yield one
    yield replace(
        one, workload="torchvision:mobilenet_v2", image_size=224, micro_batch_size=32,
        precision="fp32",
    )  # fmt: skip
    yield Case(kind="context", group="context", micro_batch_size=1)
    first = Case(group="raw-truth")
    yield first
    yield replace(first, memory_format="channels-last")
    yield replace(first, precision="fp32")
    yield replace(first, precision="amp-bf16")
    yield Case(kind="convolutions", memory_format="channels-last", group="libraries")
    yield Case(kind="batch_norm", group="libraries", image_size=160, micro_batch_size=16)
    yield Case(micro_batch_size=16, group="article")
    yield Case(micro_batch_size=64, group="article")
    yield Case(micro_batch_size=16, accumulation_steps=4, group="article")
    yield Case(micro_batch_size=64, recompute="all", group="article")
    yield Case(micro_batch_size=64, precision="fp32", group="article")


def _breadth(official: Path | None) -> Iterator[Case]:
    """Every network, setting and smaller card."""
    yield from _small_cards()[:4]
    yield from (Case(workload=model, micro_batch_size=16, group="networks") for model in YOLO)
    yield from (_classifier(model) for model in TORCHVISION)
    yield from _settings()
    if official is not None:
        yield from _official(official)
    yield from _small_cards()[4:]
    for peer in PEERS:
        mine = {"official": str(official)} if official is not None and peer == "official" else {}
        yield Case(
            kind="peer",
            peer=peer,
            budget_gib=24,
            group="peers",
            most_seconds=200,
            arguments=mine,
        )
    yield from _grid()


def _small_cards() -> list[Case]:
    """Return twelve smaller cards, those that people ask about most first."""
    plain = [
        (24, "yolov9-s"),
        (12, "yolov9-s"),
        (16, "yolov9-s"),
        (12, "yolov9-c"),
        (16, "yolov9-c"),
        (24, "yolov9-c"),
        (12, "yolov9-m"),
        (24, "yolov9-e"),
        (16, "gelan-c"),
    ]
    base = Case(kind="budget", group="small-cards")
    return [
        *(replace(base, workload=workload, budget_gib=gib) for gib, workload in plain),
        replace(base, budget_gib=12, memory_format="channels-last"),
        replace(base, budget_gib=16, recompute="all"),
        replace(base, budget_gib=24, precision="fp32"),
    ]


def _settings() -> Iterator[Case]:
    base = Case(group="settings")
    yield replace(base, allocator="expandable_segments:True")
    yield replace(base, cudnn_benchmark=True)
    yield replace(base, deterministic=True)
    yield replace(base, recompute="all")
    yield replace(base, memory_format="channels-last", recompute="all")
    for optimizer in ("AdamW", "Adam", "RMSprop"):
        yield replace(base, optimizer=optimizer)
    yield replace(base, accumulation_steps=8)


def _official(checkout: Path) -> Iterator[Case]:
    for batch in (8, 64):
        yield Case(
            workload=f"official:{checkout}",
            arguments={"cfg": "yolov9-s", "name": "official-yolov9-s"},
            micro_batch_size=batch,
            deterministic=True,
            group="article",
        )


def _grid() -> Iterator[Case]:
    for model in YOLO:
        base = Case(workload=model, micro_batch_size=32, group="grid")
        for size, batch in ((640, 1), (640, 4), (640, 32), (320, 64), (1280, 4)):
            yield replace(base, image_size=size, micro_batch_size=batch)
        yield replace(base, memory_format="channels-last")
        yield replace(base, precision="amp-bf16")
    for model in TORCHVISION:
        plain = replace(_classifier(model), group="grid")
        yield replace(plain, precision="fp32")
        yield replace(plain, memory_format="channels-last")
        yield replace(plain, optimizer="AdamW")


def _classifier(model: str) -> Case:
    return Case(
        workload=f"torchvision:{model}", image_size=224, micro_batch_size=64, group="networks"
    )
