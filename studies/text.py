"""Format the answers of commands as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from antigram.model.choices import INT8_NOTE
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
    """Format the answer of ``prepare``: segments, recordings, and what was left out."""
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


def corpora_text(entries: Sequence[Fields]) -> str:
    """Format the answer of ``corpora``: four lines for each corpus, and its presets."""
    lines = []
    for entry in entries:
        folder = entry["path"] or f"not there; looked in {', '.join(entry['looked_in'])}"
        lines += [
            f"{entry['name']}: {', '.join(entry['labels']) or 'labels of your own'}; "
            f"{entry['seconds']:g} s; {entry['licence']}",
            f"  {folder}",
            f"  {entry['how_to_get']}",
            f"  cite: {entry['citation']}",
        ]
        lines += [f"  `preset={name}`: {settings}" for name, settings in entry["presets"].items()]
    return "\n".join(lines)


def downloaded_text(done: Fields) -> str:
    """Format the answer of ``download``: folder of the corpus, and hashes of its archives."""
    hashes = "".join(f"\n  SHA-256 {value}  {name}" for name, value in done["sha256"].items())
    checked = "as published" if done["verified"] else "no hash is published"
    text = f"{done['bytes']} bytes, {checked}{hashes}"
    return f"{done['path']}: {'already there' if done['left_alone'] else text}"


def built_text(done: Fields) -> str:
    """Format the answer of ``cache-grams``: size and time, and a line for each layer."""
    layers = (f"\n  layer {n}: {_layer_text(layer)}" for n, layer in done["layers"].items())
    return f"{done['cache']}: {done['clips']} clips, {done['seconds']:.1f} s{''.join(layers)}"


def _layer_text(layer: Fields) -> str:
    text = f"{layer['codec']} {layer['dtype']}, {layer['bytes_per_clip']} bytes a clip"
    if layer["codec"] != "lowrank":
        return text
    return (
        f"{text}; rank {layer['rank']}, energy kept: mean {layer['energy_mean']:.6f}, least "
        f"{layer['energy_least']:.6f}, {layer['energy_short']} clips short; largest cosine error "
        f"on a sample {layer['cosine_error_sample']:.1e}, at most {layer['cosine_error_bound']:.1e}"
    )


def estimate_text(costs: Fields) -> str:
    """Format the answer of ``cache-grams --dry-run``: size, time and break-even of each layer."""
    lines = [
        f"{costs['cache']}: {costs['clips']} clips, {costs['bytes'] / 1e6:.1f} MB, "
        f"{costs['seconds']:.0f} s on {costs['device']}; online: "
        f"{costs['online_seconds_per_epoch']:.0f} s of the teacher in each epoch"
    ]
    for number, layer in costs["layers"].items():
        size = layer["bytes_per_clip"]
        wide = "size known after a pilot" if size is None else f"{size} bytes a clip"
        epochs = layer["break_even_epochs"]
        pays = "never" if epochs is None else f"after {epochs:.2f} epochs"
        lines.append(
            f"  layer {number}: {layer['codec']} {layer['dtype']}, {wide}, "
            f"{layer['seconds']:.0f} s alone; pays off against online {pays}"
        )
    return "\n".join(lines)


def budget_text(costs: Fields) -> str:
    """Format the answer of ``plan``: memory and FLOPs by layer and arm, and size of the cache."""
    base = costs["baseline"]
    lines = [
        f"{costs['store']}: batches of {costs['batch_clips']}, {costs['nets']} teacher(s)",
        f"baseline    {size_text(base['memory']):>9}          {base['flops'] / 1e9:9.0f} GFLOP",
    ]
    for number, layer in costs["layers"].items():
        cache, pays = layer["cache"], layer["cache"]["break_even_epochs"]
        after = "never" if pays is None else f"after {pays:.2f} epochs"
        rounded = f"; {INT8_NOTE}" if cache["dtype"] == "int8" else ""
        lines.append(
            f"layer {number}: a cache of {cache['codec']} {cache['dtype']} takes "
            f"{size_text(cache['bytes'])} ({cache['bytes_per_clip']} bytes a clip{rounded}), of "
            f"which a step reads {size_text(cache['bytes_per_step'])}, and pays off against online "
            f"{after}; the paper's equation 4: {size_text(layer['paper_eq4_bytes'])} beside the "
            "training"
        )
        lines += [
            f"  {arm:9s} {size_text(layer[arm]['memory']):>9} "
            f"{layer[arm]['memory_over_baseline']:6.3f} x "
            f"{layer[arm]['flops'] / 1e9:9.0f} GFLOP {layer[arm]['flops_over_baseline']:6.3f} x"
            for arm in ("cached", "online", "released")
        ]
    return "\n".join(lines)


def trained_text(result: Fields) -> str:
    """Format the answer of ``train``: accuracies, epochs, and time of a step."""
    from antigram.model.training.worth import CONTROL, accuracies_text

    return (
        f"{result['run']}: {CONTROL if result.get('shuffle_labels') else ''}accuracy "
        f"{accuracies_text(result)}; {result['epochs']} epochs, best "
        f"{result['best_epoch']}; "
        f"{result['seconds_per_step']:.3f} s a step, data wait {result['data_wait_fraction']:.1%}"
    )


def scores_text(scores: Scores) -> str:
    """Format scores: accuracies, and recall and confusion row of each class."""
    lines = []
    for unit, tally in (("segments", scores.segments), ("recordings", scores.recordings)):
        majority = "unknown" if tally.majority is None else f"{tally.majority:.4f}"
        lines.append(
            f"{tally.count} {unit}: accuracy {tally.accuracy:.4f} (chance {tally.chance:.4f}, "
            f"majority {majority}), unweighted average recall "
            f"{tally.unweighted_average_recall:.4f}"
        )
    tally = scores.segments
    width = max(len(name) for name in tally.classes)
    lines.append(f"{'':>{width}}  recall  segments predicted as")
    for (name, r), row in zip(tally.recall.items(), tally.confusion.tolist(), strict=True):
        recall = "-" if r is None else f"{r:.3f}"
        lines.append(f"{name:>{width}}  {recall}  {' '.join(f'{n:4d}' for n in row)}")
    return "\n".join(lines)


def status_text(content: Fields) -> str:
    """Format the answer of ``status``: a line for each corpus, store, cache and run."""

    def lines() -> Iterator[str]:
        for kind, members in content.items():
            if isinstance(members, list):
                yield f"{kind}:{'' if members else ' none'}"
                yield from (f"  {m['name']}: {m['summary']}" for m in members)

    return "\n".join(lines())


def verified_text(content: Fields) -> str:
    """Format the answer of ``verify``: a line for each problem."""
    intact = "no problem in what was read" if "sampled" in content else "all intact"
    return "\n".join(f"{p['path']}: {p['problem']}" for p in content["problems"]) or intact
