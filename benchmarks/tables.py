"""Write the tables of README.md, docs/benchmarks.md and docs/reliability.md from results/*.json.

``python -m benchmarks.tables`` writes them; a test compares the pages with the results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.studies import results_page

__all__ = ["docs_page", "readme_with", "reliability_page"]

_ROOT = RESULTS.parents[1]
_BEGIN, _END = "<!-- made by benchmarks.tables: begin -->\n", "<!-- end -->\n"


def _result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _source(name: str, found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    return (
        f"[{name}.json](benchmarks/results/{name}.json): {found.get('device', 'cpu')}, "
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['versions']['torch']}, "
        f"commit {machine['commit'][:10]}"
    )


def _steps(name: str) -> str:
    """Return the table of training steps, with the arms side by side."""
    found = _result(name)
    if found is None:
        return ""
    rows = []
    for key, arms in found["arms"].items():
        cells = [key, f"{arms['baseline']['seconds']:.3g} s"]
        for arm in ("cached", "online", "released"):
            one = arms.get(arm)
            cells.append(
                f"{one['over_baseline']:.3f} ({one['flops_over_baseline']:.3f})" if one else ""
            )
        cells.append(f"{arms['cached']['data_wait']:.1%}")
        if (peak := arms["cached"]["peak_over_baseline"]) is not None:
            cells.append(f"{peak:.3f}")
        rows.append(cells)
    head = ["", "baseline", "cached", "online", "released", "wait for data, cached"]
    if rows and len(rows[0]) > len(head):
        head.append("peak memory, cached")
    return (
        f"Training steps of VGG16, width {found['width']}, precision {found['precision']}, medians "
        f"of {found['steps']} steps, the modes timed in alternation: time (and FLOPs) as multiples "
        "of the baseline's. *released* reimplements the paper's released code from its "
        "description; *nets* is the number of teachers.\n\n"
        f"{_table(head, rows)}\n{_source(name, found)}.\n\n"
    )


def _pairs() -> str:
    """Return the table of cached steps that were timed in pairs with baseline steps."""
    found = _result("step_pairs")
    if found is None:
        return ""
    rows = [
        [
            f"layer {layer}",
            *(
                f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
                for ratio in (one, one["cpu"])
            ),
            *(
                f"{counts['flops_over_baseline']:.4f}, {counts['operations_more']}"
                for counts in (one["teachers"]["1"], one["teachers"]["4"])
            ),
        ]
        for layer, one in found["layers"].items()
    ]
    head = [
        "",
        "time (95 %)",
        "CPU time (95 %)",
        "FLOPs, operations more, 1 teacher",
        "the same, 4 teachers",
    ]
    return (
        f"Cached steps over baseline steps of the same round, medians of {found['pairs']} rounds "
        f"with their bootstrap intervals (width {found['width']}, batch {found['batch']}, a "
        f"baseline step {found['baseline_seconds']:.3g} s); FLOPs and operations are counted. "
        f"A baseline step has {found['operations']} operations, without the optimiser's.\n\n"
        f"{_table(head, rows)}\n{_source('step_pairs', found)}.\n\n"
    )


def _epoch_end() -> str:
    found = _result("epoch_end")
    if found is None:
        return ""
    one, other = found["with"], found["without"]
    seconds = [each["seconds"] for each in one["written"]]
    size = max(each["bytes"] for each in one["written"]) / 1e9
    row = [
        f"{1000 * other['seconds_per_step']:.1f} ms",
        f"{1000 * one['seconds_per_step']:.1f} ms",
        f"{found['ratio']:.4f}",
        f"{len(seconds)} of {size:.1f} GB, {min(seconds):.1f} to {max(seconds):.1f} s each",
        f"{one['epochs']} in {one['steps'] * one['seconds_per_step']:.0f} s",
    ]
    head = ["a step without checkpoints", "with", "ratio", "written", "epochs"]
    return (
        f"Epochs of VGG16, width {found['width']}, with and without checkpoints, in turns. Steps "
        f"sleep for {1000 * found['step']:.0f} ms, as a host does that waits for a GPU; each epoch "
        "is better than the one before, so that its weights are kept.\n\n"
        f"{_table(head, [row])}\n{_source('epoch_end', found)}.\n\n"
    )


def _cache() -> str:
    found = _result("cache")
    if found is None:
        return ""
    reading = [
        [
            key,
            f"{one['bytes_per_clip'] / 1024:.1f} KiB",
            *(f"{one['us'][arm]:.0f}" for arm in ("antigram", "memmap", "h5py", "zarr")),
            f"{one['over_memmap']:.2f}",
            f"{one['verify_gb_per_s']:.1f} GB/s",
            f"{one['verify_gb_per_cpu_s']:.2f} GB",
        ]
        for key, one in found["reading"].items()
    ]
    building = [
        [
            key,
            f"{one['build']:.1f}",
            f"{one['bare']:.1f}",
            f"{one['of_bare']:.2f}",
            f"{one['of_bare_cpu']:.2f}",
        ]
        for key, one in found["building"].items()
    ]
    made = _table(["", "built", "bare forward", "ratio", "ratio in CPU time"], building)
    head = ["", "a clip", "antigram", "memmap", "h5py", "zarr", "speed / memmap"]
    head += ["verify", "verify, a second of CPU"]
    return (
        f"A random batch of {found['batch']} from a cache of {found['clips']} clips, full VGG16 "
        "sizes, after first touch, in microseconds; beside one raw numpy memory map, and row by "
        "row with h5py and zarr-python. `verify` uses all cores. Other programs ran on the same "
        f"cores; they disturb the figures by CPU time less.\n\n{_table(head, reading)}\n"
        "Building one layer against the bare forward pass cut off there, in clips/s, with "
        f"{found['threads']} thread(s).\n\n{made}\n{_source('cache', found)}.\n\n"
    )


def _rows() -> str:
    """Return what int8 rows change, and how rows are read that are not in memory."""
    found = _result("rows")
    if found is None:
        return ""
    errors = [
        [
            key,
            str(one["channels"]),
            f"{one['similarity']:.2f}",
            *(
                f"{one[scales][size]:.5f}"
                for scales in ("channel scales", "one scale")
                for size in ("largest", "root_mean_square")
            ),
        ]
        for key, one in found["int8"].items()
    ]
    head = ["teacher's rows, student", "channels", "similarity", "largest", "rms"]
    head += ["one scale: largest", "rms"]
    first, ahead = found["first"], found["ahead"]
    waits = [
        [
            arm,
            *(f"{ahead[arm][name]:.1f}" for name in ("mean_ms", "median_ms", "slowest_of_100_ms")),
        ]
        for arm in ("read ahead", "when needed")
    ]
    touched = [
        [arm, f"{one['gb_per_s']:.2f} GB/s", f"{one['others_held_up']:.0%}"]
        for arm, one in first.items()
    ]
    gathered = [
        [size, *(f"{one[arm]:.1f} GB/s" for arm in ("one thread", "several"))]
        for size, one in found["threads"].items()
    ]
    of_threads = _table(["a batch", "one thread", "several"], gathered)
    of_touch = _table(["", "speed", "held up"], touched)
    return (
        f"Error of a similarity with int8 rows, {found['networks']}; with the scales that caches "
        f"have, and with one scale for a segment.\n\n{_table(head, errors)}\n"
        f"Waiting for a batch of {found['batch']} rows of {ahead['row_bytes'] / 1024:.0f} KiB "
        f"whose pages are not in memory, in random order, a step of {found['step_ms']:.0f} ms "
        "after each, in milliseconds. The pages were dropped before each pass, in place of a "
        f"memory that is too small.\n\n{_table(['', 'mean', 'median', 'slowest of 100'], waits)}\n"
        "The first check of all chunks, whose pages are not in memory, and the share of the time "
        "in which another thread waited more than 5 ms for the interpreter: with the pages read "
        f"before the checksum, and as it touches them.\n\n{of_touch}\n"
        "A batch of rows gathered from memory by one thread, and by one for each core (up to four, "
        f"from 8 MB on, for a GPU).\n\n{of_threads}\n"
        f"{_source('rows', found)}.\n\n"
    )


def _prepare() -> str:
    found = _result("prepare")
    if found is None:
        return ""
    speed, many = found["clips_per_second"], found["many_clips_per_second"]
    rows = [[name, f"{speed[name]:.0f}"] for name in ("antigram", "librosa", "lhotse")]
    cpu = found.get("cpu_microseconds_per_clip", {})
    for row in rows:
        row.append(f"{cpu[row[0]]:.0f}" if cpu else "")
    rows += [[f"antigram, {n} worker(s)", f"{each:.0f}", ""] for n, each in many.items()]
    written = (
        f" What is written to disk is {found['written_over_store']:.3f} times the store."
        if "written_over_store" in found
        else ""
    )
    return (
        f"Preparation of {found['clips']} one-second clips on one core, with noise mixed in and "
        "written; beside librosa.load and scipy's stft (no noise, nothing written) and lhotse's "
        f"compute_and_store_features; then {found['many_clips']} clips with one and two workers. "
        f"Clips/s, and microseconds of CPU time for a clip.{written}\n\n"
        f"{_table(['', 'clips/s', 'CPU'], rows)}\n{_source('prepare', found)}.\n\n"
    )


def _scale() -> str:
    """Return the table of what grows with the number of segments."""
    found = _result("scale")
    if found is None:
        return ""
    sizes = found["segments_in_millions"]
    growth = found["cpu_time_over_linear"]
    last = " to ".join(list(sizes)[-2:])
    rows = []
    for stage in next(iter(sizes.values())):
        own = [size[stage] for size in sizes.values()]
        cells = [f"{one['cpu_seconds']:.1f} s, {one['peak_mb'] / 1000:.2g} GB" for one in own]
        rows.append([stage, *cells, str(growth.get(stage, {}).get(last, ""))])
    steps = [size["1,000 steps"] for size in sizes.values()]
    apart = "; ".join(
        f"{size} million: {one['until_first_step_s']:.0f} s until the first step, "
        f"{one['steps_s']:.0f} s of steps of {found['batch']} segments, "
        f"{one['validation_and_evaluation_s']:.0f} s of evaluation, chunks "
        + ("mapped" if one["chunks_mapped"] else "read")
        for size, one in zip(sizes, steps, strict=True)
    )
    head = ["", *(f"{size} million" for size in sizes), f"CPU time over linear, {last}"]
    return (
        "Stores of tiny segments (3 frames of 2 bins), which have as many chunks, ids and labels "
        "as stores of one second of speech: CPU time and peak memory of a process for each stage. "
        "*split* divides the recordings at random, and *three folds* by speaker; *1,000 steps* is "
        "a complete `train` of a network of 50 weights, with all evaluations (in time, not CPU "
        f"time: {apart}). Stages of less than a second have no growth. At 36 million, the chunks "
        "are more than a process may map: reading them is why training and folds grow faster than "
        "linearly; the order of an epoch is a sort; and looking up 0.3 million chunks depends on "
        "what the file system keeps in memory.\n\n"
        f"{_table(head, rows)}\n{_source('scale', found)}.\n\n"
    )


def _demo() -> str:
    found = _result("demo")
    if found is None:
        return ""
    rows = []
    for arm in found["arms"]:
        accuracy, difference = arm["accuracy"], arm["difference"]
        row = [arm["arm"], f"{accuracy['mean']:.3f}", "-", "-"]
        if difference:
            ends = (difference["low"], difference["high"])
            row[2] = f"{100 * difference['mean']:+.1f}"
            if None not in ends:
                row[2] += f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
            row[3] = difference["verdict"]
        rows.append(row)
    return (
        f"`make demo` ({found['seconds']:.0f} s without installation): a comparison of one seed "
        "and two folds on synthesised speech, far too small to decide anything.\n\n"
        f"{_table(['arm', 'accuracy', 'difference, points (95 %)', 'verdict'], rows)}\n"
        f"{_source('demo', found)}.\n\n"
    )


def _intervals() -> str:
    found = _result("intervals")
    if found is None:
        return ""
    rows = [
        [f"the 95 % interval holds the truth, {n} groups, 5 folds, 3 seeds", f"{share:.1%}"]
        for n, share in found["coverage"].items()
    ]
    rows += [
        [f"{test.replace('_', ' ')} test, p < .05 at 30 groups, {design}", f"{share:.1%}"]
        for design, tests in found["false_alarms"].items()
        for test, share in tests.items()
    ]
    rows.append(["better or worse said of any of four arms", f"{found['family_wise']:.1%}"])
    return (
        f"Share of {found['studies']} simulated studies without an effect, with the noise of "
        f"speakers and of networks ([comparisons](comparisons.md)).\n\n"
        f"{_table(['', 'share'], rows)}\n{_source('intervals', found)}.\n\n"
    )


def _tried() -> str:
    """Return what was tried and lost, from the files of ``benchmarks/tried``."""
    parts = [path.read_text() for path in sorted((_ROOT / "benchmarks" / "tried").glob("*.md"))]
    return "## Tried and lost\n\n" + "\n".join(parts)


def docs_page() -> str:
    """Return the text of docs/benchmarks.md."""
    gpu = [
        _steps(f"train_step-gpu-{precision}") for precision in ("32", "tf32", "bf16", "tf32-128")
    ]
    parts = [
        "# Measured\n\n`make bench` measures anew, `make bench-gpu` on a GPU; "
        "`python -m benchmarks.tables` writes this page from benchmarks/results.\n\n",
        "## Training\n\n",
        _steps("train_step-cpu"),
        _pairs(),
        _epoch_end(),
        "".join(gpu) or "On a GPU: nothing was measured yet.\n\n",
        "## Caches\n\n",
        _cache(),
        _rows(),
        "## Preparation\n\n",
        _prepare(),
        "## Tens of millions of segments\n\n" if _result("scale") else "",
        _scale(),
        "## Statistics of a comparison\n\n",
        _intervals(),
        "## Demo\n\n",
        _demo(),
        _tried(),
    ]
    text = "".join(parts).replace("](benchmarks/", "](../benchmarks/")
    return text.rstrip() + "\n"


_KINDS = {
    "kills": "Killed processes",
    "flips": "Flipped bits",
    "faults": "Failing calls",
    "hostile": "Hostile input",
}


def reliability_page() -> str:
    """Return the text of docs/reliability.md: the campaigns of damage, and their outcomes."""
    found = _result("reliability") or {"campaigns": {}}
    parts = [
        "# Damage, tried\n\n`make test-all` runs all of this anew and writes this page from "
        "[reliability.json](benchmarks/results/reliability.json), which says for each row which "
        "commit was tried. One row alone: `.venv/bin/python -m pytest -m slow TEST`.\n\n"
    ]
    for kind, title in _KINDS.items():
        rows = [
            [name, str(one["tried"]), _outcome(one), f"`{one['test']}`"]
            for name, one in found["campaigns"].items()
            if one["kind"] == kind
        ]
        if rows:
            parts.append(f"## {title}\n\n{_table(['', 'tried', 'outcome', 'test'], rows)}\n")
    if "machine" in found:
        machine = found["machine"]
        parts.append(
            f"Run on {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, "
            f"torch {machine['versions']['torch']}.\n"
        )
    return "".join(parts).replace("](benchmarks/", "](../benchmarks/").rstrip() + "\n"


def _outcome(one: Mapping[str, Any]) -> str:
    """Return the counts of a campaign as text."""
    counts = {k: v for k, v in one.items() if k not in ("kind", "test", "commit", "tried")}
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items())


def readme_with(text: str) -> str:
    """Return README's text with a new section of measurements."""
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return head + _BEGIN + _steps("train_step-cpu") + _END + tail


def main() -> None:
    """Write the four pages."""
    (_ROOT / "docs" / "results.md").write_text(results_page())
    (_ROOT / "docs" / "benchmarks.md").write_text(docs_page())
    (_ROOT / "docs" / "reliability.md").write_text(reliability_page())
    readme = _ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text()))


if __name__ == "__main__":
    main()
