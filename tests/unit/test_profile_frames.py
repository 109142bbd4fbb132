"""Frames of a trace, their own times, collapsed stacks and the picture."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mrpo.profile.flame import WIDTH, collapsed, flame_svg
from mrpo.profile.frames import ON_GPU, Frame, add_events, read_events, readable, top_lines

SVG = "{http://www.w3.org/2000/svg}"


def call(name: str, ts: float, dur: float, *, tid: int = 1, cat: str = "cpu_op") -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 7, "tid": tid}


EVENTS = [
    call("/a/b/step.py(12): train_step", 0.0, 100.0, cat="python_function"),
    call("aten::mm", 10.0, 30.0),
    call("aten::mm", 50.0, 20.0),
    call("aten::resize_", 52.0, 5.0),
    call("aten::add", 69.0, 4.0),  # by rounding it begins within aten::mm and ends after it
    call("backward", 20.0, 60.0, tid=2),
    call("threading.py(5): wait", 0.0, 100.0, tid=3, cat="python_function"),  # of a thread that computes nothing
    call("gemm", 30.0, 25.0, tid=9, cat="kernel"),
    {"ph": "M", "name": "process_name", "pid": 7, "args": {}},
]


def tree() -> Frame:
    root = Frame("rank")
    add_events(root, EVENTS)
    return root


def test_a_call_lies_below_the_one_it_was_made_in_and_threads_side_by_side() -> None:
    root = tree()
    assert {name: child.total_us for name, child in root.children.items()} == {
        "step.py: train_step": 100.0,
        "backward": 60.0,
    }
    assert root.total_us == 160.0
    step = root.children["step.py: train_step"]
    multiply = step.children["aten::mm"]
    assert (multiply.total_us, multiply.calls) == (50.0, 2)
    assert {name: child.total_us for name, child in multiply.children.items()} == {
        "aten::resize_": 5.0,
        "aten::add": 1.0,
    }
    assert multiply.self_us == 44.0
    assert step.self_us == 50.0
    assert sum(frame.self_us for _, frame in root.walk()) == root.total_us


def test_what_runs_on_a_gpu_is_a_tree_of_its_own() -> None:
    root = Frame("gpu")
    add_events(root, EVENTS, kinds=ON_GPU)
    assert {name: child.total_us for name, child in root.children.items()} == {"gemm": 25.0}


def test_several_traces_add_up_and_compressed_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": EVENTS}).encode()))
    root = tree()
    add_events(root, read_events(path))
    assert root.total_us == 320.0
    assert root.children["step.py: train_step"].children["aten::mm"].calls == 4


def test_names_lose_what_differs_from_run_to_run() -> None:
    assert readable("/x/y/model.py(311): forward") == "model.py: forward"
    assert readable("<built-in method f of T object at 0x7f01>") == "<built-in method f of T>"
    assert readable("a;b") == "a,b"


def test_the_top_is_by_own_time_over_all_callers() -> None:
    assert [(line.name, line.self_us, line.calls) for line in top_lines(tree(), 2)] == [
        ("backward", 60.0, 1),
        ("step.py: train_step", 50.0, 1),
    ]


def test_collapsed_stacks_hold_all_the_time() -> None:
    rows = [row.rsplit(" ", 1) for row in collapsed(tree()).splitlines()]
    assert ["rank;step.py: train_step;aten::mm;aten::resize_", "5"] in rows
    assert sum(int(number) for _, number in rows) == 160


def test_the_picture_is_as_wide_as_the_time_and_leaves_out_what_is_too_small() -> None:
    drawn = ElementTree.fromstring(flame_svg(tree(), "a <title>", min_share=0.05))
    widths = {
        str(box.findtext(f"{SVG}title")).split(":")[0]: float(box.find(f"{SVG}rect").attrib["width"])  # type: ignore[union-attr]
        for box in drawn.findall(f"{SVG}g")
    }
    assert abs(widths["rank"] - WIDTH) < 1.0
    assert abs(widths["step.py"] - WIDTH * 100 / 160) < 1.0
    assert "aten" in widths
    assert not any("resize" in str(box.findtext(f"{SVG}title")) for box in drawn.findall(f"{SVG}g"))
