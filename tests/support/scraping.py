"""Scrapes of /metrics, and what has to hold between two of them."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from http.client import HTTPConnection

from prometheus_client.parser import text_string_to_metric_families

from tests.support.harness import DEADLINE, LOCAL

Series = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample and its labels."""


class Watcher(threading.Thread):
    """Scrapes without end, with a pause of so many seconds, and notes what went backwards."""

    def __init__(self, port: int, *, pause: float = 0.0) -> None:
        super().__init__()
        self._pause = pause
        self.over = threading.Event()
        self.scrapes = 0
        self.wrong: list[str] = []
        self.client = HTTPConnection(LOCAL, port, timeout=DEADLINE)
        self._before: dict[Series, float] = {}

    def run(self) -> None:
        with contextlib.closing(self.client):
            while not self.over.wait(self._pause):
                try:
                    self._compare(self.scrape())
                except Exception as error:  # noqa: BLE001 - whatever it is, it must not end unseen in this thread
                    self.wrong.append(repr(error))
                    return

    def scrape(self) -> dict[Series, float]:
        """Return all series that only ever grow, and `echod_connections_in_use`."""
        self.client.request("GET", "/metrics")
        text = self.client.getresponse().read().decode()
        self.scrapes += 1
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if family.type in ("counter", "histogram") or sample.name == "echod_connections_in_use"
        }

    def _compare(self, now: dict[Series, float]) -> None:
        in_use = now[("echod_connections_in_use", ())]
        accepted, closed = total(now, "echod_connections_accepted_total"), total(now, "echod_connections_closed_total")
        if accepted != closed + in_use:
            self.wrong.append(f"accepted {accepted}, closed {closed}, in use {in_use}")
        if now[("echod_connection_duration_seconds_count", ())] != closed:
            self.wrong.append(f"durations, closed {closed}")
        if self._before and now.keys() != self._before.keys():
            self.wrong.append(f"other series: {now.keys() ^ self._before.keys()}")
        self.wrong += [
            f"{series}: {before} -> {now[series]}"
            for series, before in self._before.items()
            if now[series] < before and series[0] != "echod_connections_in_use"
        ]
        self._before = now


def total(values: dict[Series, float], name: str) -> float:
    return sum(value for (series, _), value in values.items() if series == name)


def by_reason(values: dict[Series, float], name: str) -> Counter[str]:
    return Counter({dict(labels)["reason"]: int(value) for (series, labels), value in values.items() if series == name})
