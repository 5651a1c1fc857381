"""What commands answer, as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from antigram.pipeline.storage.files import size_text

if TYPE_CHECKING:
    from antigram.model.training.evaluate import Scores

__all__ = [
    "budget_text",
    "built_text",
    "corpora_text",
    "downloaded_text",
    "estimate_text",
    "prepared_text",
    "scores_text",
    "status_text",
    "trained_text",
    "verified_text",
]

Fields = Mapping[str, Any]


def prepared_text(done: Fields) -> str:
    """Of ``prepare``: numbers of segments and recordings, and what was left out."""
    counts = ", ".join(
        f"{n} {split} segments of {done['recordings'][split]} recordings"
        for split, n in done["clips"].items()
    )
    lines = [
        f"{done['store']}: {counts}; {done['shape'][0]} frames x {done['shape'][1]} "
        f"frequencies; {done['clips_per_second']:g} segments/s",
        *(f"  fold: {path}" for path in done["folds"]),
        *(f"  skipped: {n} x {why}" for why, n in done["skipped"].items()),
        *(f"  rejected: {r['source']}: {r['reason']}" for r in done["rejected"]),
    ]
    return "\n".join(lines)


def corpora_text(found: Sequence[Fields]) -> str:
    """Of ``corpora``: four lines a corpus, and its presets."""
    lines = []
    for entry in found:
        there = entry["path"] or f"not there; looked in {', '.join(entry['looked_in'])}"
        lines += [
            f"{entry['name']}: {', '.join(entry['labels']) or 'labels of your own'}; "
            f"{entry['seconds']:g} s; {entry['licence']}",
            f"  {there}",
            f"  {entry['how_to_get']}",
            f"  cite: {entry['citation']}",
        ]
        lines += [f"  `preset={name}`: {each}" for name, each in entry["presets"].items()]
    return "\n".join(lines)


def downloaded_text(done: Fields) -> str:
    """Of ``download``: where the corpus is, and its archives' hashes."""
    hashes = "".join(f"\n  SHA-256 {value}  {name}" for name, value in done["sha256"].items())
    vouched = "as published" if done["verified"] else "no hash is published"
    text = f"{done['bytes']} bytes, {vouched}{hashes}"
    return f"{done['path']}: {'already there' if done['left_alone'] else text}"


def built_text(done: Fields) -> str:
    """Of ``cache-grams``: size and time, and a line a layer."""
    each = (f"\n  layer {n}: {_layer_text(layer)}" for n, layer in done["layers"].items())
    return f"{done['cache']}: {done['clips']} clips, {done['seconds']:.1f} s{''.join(each)}"


def _layer_text(layer: Fields) -> str:
    text = f"{layer['codec']} {layer['dtype']}, {layer['bytes_per_clip']} bytes a clip"
    if layer["codec"] != "lowrank":
        return text
    return (
        f"{text}; rank {layer['rank']}, energy kept: mean {layer['energy_mean']:.6f}, least "
        f"{layer['energy_least']:.6f}, {layer['energy_short']} clips short; largest cosine error "
        f"on a sample {layer['cosine_error_sample']:.1e}, at most {layer['cosine_error_bound']:.1e}"
    )


def estimate_text(found: Fields) -> str:
    """Of ``cache-grams --dry-run``: size, time and break-even, and a line a layer."""
    lines = [
        f"{found['cache']}: {found['clips']} clips, {found['bytes'] / 1e6:.1f} MB, "
        f"{found['seconds']:.0f} s on {found['device']}; online: "
        f"{found['online_seconds_per_epoch']:.0f} s of the teacher in each epoch"
    ]
    for number, layer in found["layers"].items():
        size = layer["bytes_per_clip"]
        wide = "size known after a pilot" if size is None else f"{size} bytes a clip"
        epochs = layer["break_even_epochs"]
        pays = "never" if epochs is None else f"after {epochs:.2f} epochs"
        lines.append(
            f"  layer {number}: {layer['codec']} {layer['dtype']}, {wide}, "
            f"{layer['seconds']:.0f} s alone; pays off against online {pays}"
        )
    return "\n".join(lines)


def budget_text(found: Fields) -> str:
    """Of ``plan``: memory and FLOPs of a step, by layer and arm, and the cache's size."""
    base = found["baseline"]
    lines = [
        f"{found['store']}: batches of {found['batch_clips']}, {found['nets']} teacher(s)",
        f"baseline    {size_text(base['memory']):>9}          {base['flops'] / 1e9:9.0f} GFLOP",
    ]
    for number, layer in found["layers"].items():
        cache, pays = layer["cache"], layer["cache"]["break_even_epochs"]
        after = "never" if pays is None else f"after {pays:.2f} epochs"
        lines.append(
            f"layer {number}: a cache of {cache['codec']} {cache['dtype']} takes "
            f"{size_text(cache['bytes'])} ({cache['bytes_per_clip']} bytes a clip) and pays off "
            f"against online {after}; the paper's equation 4: "
            f"{size_text(layer['paper_eq4_bytes'])} beside the training"
        )
        lines += [
            f"  {arm:9s} {size_text(layer[arm]['memory']):>9} "
            f"{layer[arm]['memory_over_baseline']:6.3f} x "
            f"{layer[arm]['flops'] / 1e9:9.0f} GFLOP {layer[arm]['flops_over_baseline']:6.3f} x"
            for arm in ("cached", "online", "released")
        ]
    return "\n".join(lines)


def trained_text(result: Fields) -> str:
    """Of ``train``: accuracies, epochs, and time of a step."""
    from antigram.model.training.worth import accuracies_text

    return (
        f"{result['run']}: accuracy {accuracies_text(result)}; {result['epochs']} epochs, best "
        f"{result['best_epoch']}; "
        f"{result['seconds_per_step']:.3f} s a step, data wait {result['data_wait_fraction']:.1%}"
    )


def scores_text(scores: Scores) -> str:
    """Of ``evaluate``: accuracies, and each class's recall and row of the confusion matrix."""
    lines = []
    for what, each in (("segments", scores.segments), ("recordings", scores.recordings)):
        majority = "unknown" if each.majority is None else f"{each.majority:.4f}"
        lines.append(
            f"{each.count} {what}: accuracy {each.accuracy:.4f} (chance {each.chance:.4f}, "
            f"majority {majority}), unweighted average recall {each.unweighted_average_recall:.4f}"
        )
    tally = scores.segments
    width = max(len(name) for name in tally.classes)
    lines.append(f"{'':>{width}}  recall  segments predicted as")
    for (name, r), row in zip(tally.recall.items(), tally.confusion.tolist(), strict=True):
        recall = "-" if r is None else f"{r:.3f}"
        lines.append(f"{name:>{width}}  {recall}  {' '.join(f'{n:4d}' for n in row)}")
    return "\n".join(lines)


def status_text(content: Fields) -> str:
    """Of ``status``: a line for each thing, by kind."""

    def lines() -> Iterator[str]:
        for kind, members in content.items():
            if isinstance(members, list):
                yield f"{kind}:{'' if members else ' none'}"
                yield from (f"  {m['name']}: {m['summary']}" for m in members)

    return "\n".join(lines())


def verified_text(content: Fields) -> str:
    """Of ``verify``: a line a problem."""
    return "\n".join(f"{p['path']}: {p['problem']}" for p in content["problems"]) or "all whole"
