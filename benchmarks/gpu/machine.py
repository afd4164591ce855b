"""On what a case ran, without naming the machine."""

from __future__ import annotations

import datetime as dt
from typing import Any

from memplan.advise.calibrating import measured_versions
from memplan.device import nvml


def machine_facts(device: str) -> dict[str, Any]:
    """Return card, driver and versions; no serial number, path or host name."""
    facts: dict[str, Any] = {
        "device": "cpu" if device == "cpu" else "cuda",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "versions": measured_versions(),
    }
    if device != "cpu":
        one = nvml.card_at(int(device.partition(":")[2] or 0))
        facts |= {
            "card": one.card.name,
            "device_name": one.device_name,
            "driver": one.driver_version,
            "capacity_bytes": one.capacity_bytes,
            "in_catalogue": one.in_catalogue,
        }
    return facts
