"""The text that says where the time of the recorded steps went, and the flame graphs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrpo.atomic import write_text
from mrpo.config import ProfileConfig
from mrpo.profile.flame import collapsed, flame_svg
from mrpo.profile.frames import ON_CPU, ON_GPU, Frame, add_events, read_events, top_lines
from mrpo.profile.recording import ROLLOUT, Recording, Span

FLAMES = "flames"
SUMMARY = "summary.txt"


def summarise(recording: Recording, settings: ProfileConfig) -> str:
    """Write summary and flame graphs into the profile's folder; returns the summary."""
    parts = [_stages_text(recording)]
    for (who, stage), traces in recording.traces_by_process().items():
        for place, kinds in (("", ON_CPU), (" on the GPU", ON_GPU)):
            root = Frame(f"{who} {stage}{place}")
            for trace in traces:
                add_events(root, read_events(trace), kinds=kinds)
            if not root.children:
                continue
            name = f"{who}.{stage}{'.gpu' if place else ''}"
            flames = recording.folder / FLAMES
            flames.mkdir(exist_ok=True)
            title = f"{root.name}: {len(traces)} calls, {root.total_us / 1e6:.2f} s over all threads"
            write_text(flames / f"{name}.collapsed.txt", collapsed(root))
            write_text(flames / f"{name}.svg", flame_svg(root, title, min_share=settings.min_share))
            parts.append(_frames_text(root, title, settings.top))
    text = "\n".join(parts)
    write_text(recording.folder / SUMMARY, text)
    return text


def _stages_text(recording: Recording) -> str:
    """Seconds a step of each stage, from the calls themselves: recording is not in them."""
    rows = [
        f"{len(_of(recording.calls, ROLLOUT))} steps recorded. What the controller waited for, while it was recorded:",
        "",
    ]
    for stage in dict.fromkeys(span.stage for span in recording.calls):
        found = _of(recording.calls, stage)
        seconds = sum(span.seconds for span in found)
        rows.append(f"  {stage:<8} {seconds / len(found):8.3f} s a call, {len(found)} calls")
    return "\n".join(rows) + "\n"


def _of(spans: Sequence[Span], stage: str) -> list[Span]:
    return [span for span in spans if span.stage == stage]


def _frames_text(root: Frame, title: str, number: int) -> str:
    rows = [title, "   share    own s    calls  what"]
    for line in top_lines(root, number):
        share = line.self_us / max(root.total_us, 1e-9)
        rows.append(f"  {share:6.1%} {line.self_us / 1e6:8.3f} {line.calls:8d}  {line.name[:90]}")
    return "\n".join(rows) + "\n"


def profile_folder(run: Path) -> Path:
    """Of a run's profile, made where it is not there."""
    folder = run / "profile"
    folder.mkdir(exist_ok=True)
    return folder
