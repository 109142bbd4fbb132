"""Nodes of the cluster that leave and join while a run is under way."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mrpo.faults import Fault, FaultKind, FaultLog

logger = logging.getLogger(__name__)


class NodeWatch:
    """Compares what is there with what was there; a node that is lost is a fault until another one joins."""

    def __init__(self, faults: FaultLog) -> None:
        """Nothing seen yet.

        Args:
            faults: told of nodes that are lost; those lost to earlier processes of the run are lost until they are
                seen, or others join.
        """
        self._faults = faults
        self._seen: dict[str, str] | None = None
        self._open: list[Fault] = faults.left_open(FaultKind.NODE_LOST)
        self._early: dict[str, str] = {}  # of the nodes that joined when none was known to be lost
        self.num_lost = 0
        self.num_joined = 0

    def look(self, alive: Mapping[str, str]) -> dict[str, str]:
        """Take note of the nodes that are alive now: Ray's id → address. The first look is what others compare with.

        Returns:
            Those that have joined since the look before.
        """
        seen, self._seen = self._seen, dict(alive)
        self._early = {node_id: address for node_id, address in self._early.items() if node_id in alive}
        if seen is None:
            for fault in [item for item in self._open if _address(item) in alive.values()]:
                self._end(fault)
            return {}
        for node_id, address in seen.items():
            if node_id not in alive:
                self.num_lost += 1
                fault = self._faults.begin(FaultKind.NODE_LOST, f"{address} ({node_id[:8]})")
                self._open.append(fault)
                # Ray hears of a restarted machine before it gives the earlier life up.
                again = next((other for other, where in self._early.items() if where == address), None)
                if again is not None:
                    del self._early[again]
                    self._end(fault)
        joined = {node_id: address for node_id, address in alive.items() if node_id not in seen}
        for node_id, address in joined.items():
            self.num_joined += 1
            logger.info("node %s (%s) has joined; the cluster has %d", address, node_id[:8], len(alive))
            if self._open:
                self._end(next((fault for fault in self._open if _address(fault) == address), self._open[0]))
            else:
                self._early[node_id] = address
        return joined

    def _end(self, fault: Fault) -> None:
        self._open.remove(fault)
        self._faults.end(fault)


def _address(fault: Fault) -> str:
    return fault.who.rpartition(" (")[0]
