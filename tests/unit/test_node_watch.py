"""Nodes that leave are faults, nodes that join end them."""

from __future__ import annotations

from pathlib import Path

from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog, read_faults
from mrpo.node_watch import NodeWatch


def test_a_node_that_leaves_is_a_fault_until_one_joins(tmp_path: Path) -> None:
    watch = NodeWatch(FaultLog(tmp_path / FAULTS_FILE))
    watch.look({"a" * 40: "10.0.0.1", "b" * 40: "10.0.0.2"})
    watch.look({"a" * 40: "10.0.0.1", "b" * 40: "10.0.0.2"})
    assert read_faults(tmp_path) == []
    watch.look({"a" * 40: "10.0.0.1"})
    watch.look({"a" * 40: "10.0.0.1"})
    [lost] = read_faults(tmp_path)
    assert (lost.kind, lost.who, lost.recovery_s) == (FaultKind.NODE_LOST, "10.0.0.2 (bbbbbbbb)", None)
    watch.look({"a" * 40: "10.0.0.1", "c" * 40: "10.0.0.2"})
    [mended] = read_faults(tmp_path)
    assert mended.recovery_s is not None
    assert (watch.num_lost, watch.num_joined) == (1, 1)


def test_a_node_lost_to_the_process_before_is_back_when_it_is_seen_or_another_joins(tmp_path: Path) -> None:
    for address in ("10.0.0.2", "10.0.0.3"):
        FaultLog(tmp_path / FAULTS_FILE).begin(FaultKind.NODE_LOST, f"{address} (bbbbbbbb)")
    watch = NodeWatch(FaultLog(tmp_path / FAULTS_FILE))
    watch.look({"a" * 40: "10.0.0.1", "c" * 40: "10.0.0.2"})
    assert [fault.recovery_s is not None for fault in read_faults(tmp_path)] == [True, False]
    watch.look({"a" * 40: "10.0.0.1", "c" * 40: "10.0.0.2", "d" * 40: "10.0.0.4"})
    assert [fault.recovery_s is not None for fault in read_faults(tmp_path)] == [True, True]
    assert (watch.num_lost, watch.num_joined) == (0, 1)


def test_a_node_that_joins_where_none_was_lost_is_no_fault(tmp_path: Path) -> None:
    watch = NodeWatch(FaultLog(tmp_path / FAULTS_FILE))
    watch.look({"a" * 40: "10.0.0.1"})
    watch.look({"a" * 40: "10.0.0.1", "b" * 40: "10.0.0.2"})
    assert watch.num_joined == 1
    assert read_faults(tmp_path) == []


def test_a_machine_that_is_back_before_its_loss_is_noticed_is_whole_at_once(tmp_path: Path) -> None:
    watch = NodeWatch(FaultLog(tmp_path / FAULTS_FILE))
    watch.look({"a" * 40: "10.0.0.1", "b" * 40: "10.0.0.2", "d" * 40: "10.0.0.3"})
    watch.look({"a" * 40: "10.0.0.1", "b" * 40: "10.0.0.2", "d" * 40: "10.0.0.3", "c" * 40: "10.0.0.2"})
    watch.look({"a" * 40: "10.0.0.1", "c" * 40: "10.0.0.2"})
    faults = {fault.who: fault.recovery_s for fault in read_faults(tmp_path)}
    assert faults["10.0.0.2 (bbbbbbbb)"] is not None
    assert faults["10.0.0.3 (dddddddd)"] is None, "nobody came for it"


def test_a_node_that_joined_in_the_middle_and_is_lost_later_is_lost(tmp_path: Path) -> None:
    watch = NodeWatch(FaultLog(tmp_path / FAULTS_FILE))
    head = {"a" * 40: "10.0.0.1"}
    assert watch.look(head) == {}
    assert watch.look(head | {"b" * 40: "10.0.0.2"}) == {"b" * 40: "10.0.0.2"}
    assert watch.look(head | {"b" * 40: "10.0.0.2"}) == {}
    watch.look(head)
    [lost] = read_faults(tmp_path)
    assert lost.recovery_s is None
    watch.look(head | {"c" * 40: "10.0.0.2"})
    [mended] = read_faults(tmp_path)
    assert mended.recovery_s is not None


def test_a_node_ends_the_fault_of_its_own_machine_first(tmp_path: Path) -> None:
    watch = NodeWatch(FaultLog(tmp_path / FAULTS_FILE))
    watch.look({"a" * 40: "10.0.0.1", "b" * 40: "10.0.0.2"})
    watch.look({})
    watch.look({"c" * 40: "10.0.0.2"})
    assert [fault.recovery_s is not None for fault in read_faults(tmp_path)] == [False, True]
