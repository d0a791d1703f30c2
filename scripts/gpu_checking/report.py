"""A page, its table and its picture out of the JSON that `gpu_check.sh --suite` wrote: `gpu_check.sh --report FILE`."""

import csv
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import DemoBertError, one_line
from helpers.files import read_json
from helpers.outputs import atomic_write, check_outputs
from scripts.gpu_checking import record_form
from scripts.gpu_checking.record_form import GRAPH, TIMES

#: What int8 and fp16 are held against.
BASELINE = "torch.compile"

#: Pictures have no room for more models and lengths.
_MOST_PANELS = 24


@dataclass(frozen=True)
class Row:
    """One cell of demoBERT's table."""

    model: str
    tokens: int
    batch: int
    name: str
    times: dict


def write(records: list[Path], document: Path) -> list[Path]:
    """Write `document` and, beside it, its .csv and .png; returns them. Raises DemoBertError."""
    content = _merged(records)
    steps = content["steps"]
    table, picture = document.with_suffix(".csv"), document.with_suffix(".png")
    check_outputs({"--output": document, "the table": table, "the picture": picture}, records)
    rows = rows_of(steps)
    parts = [_heading(content, picture), _networks(steps), _answers(steps), _table(rows)]
    parts += [_loadgen(steps), _layers(steps), _tried(steps, rows), _failures(steps)]
    if rows:
        draw(rows, picture)
    with atomic_write(document, "w") as file:
        file.write("\n".join(part for part in parts if part))
    _write_csv(rows, table)
    return [document, table, *([picture] if rows else [])]


def _merged(records: list[Path]) -> dict:
    """The records' steps in one; a step that failed in one and was done in another was done. Raises DemoBertError."""
    merged: dict = {"steps": {}}
    for record in records:
        content = read_json(record, "record of steps")
        if wrong := record_form.what_is_wrong(content):
            raise DemoBertError(f"{record} is not a record of gpu_check.sh --suite: {wrong}")
        for fact in ("machine", "tensorrt"):
            found = content.get(fact)  # PyTorch's times alone are of no TensorRT
            if found is not None and merged.setdefault(fact, found) != found:
                raise DemoBertError(f"{records[0]} and {record} are of different machines: make a page of each")
        failed = {key for key, entry in content["steps"].items() if "error" in entry}
        kept = {
            key: entry for key, entry in content["steps"].items() if key not in failed or key not in merged["steps"]
        }
        merged["steps"] |= kept
    return merged


def rows_of(steps: dict) -> list[Row]:
    """Every cell that was measured, by model, tokens, batch.

    Where several steps have a cell, that of the fewest batches counts: records of earlier days have steps of two batches
    of a padded engine, which fills up the smaller.
    """
    rows = {}
    for key, entry in steps.items():
        result = entry.get("result")
        if key.startswith("table: ") and isinstance(result, dict):
            products = ", products × " in key
            for name, by_batch in result["times"].items():
                name = f"products alone, {name}" if products else name
                for batch, times in by_batch.items():
                    if "average_ms" in times:
                        cell = result["model"], result["tokens"], int(batch), name
                        rows.setdefault(cell, []).append((len(by_batch), Row(*cell, times)))
    return [min(rows[cell], key=lambda pair: pair[0])[1] for cell in sorted(rows)]


def _heading(content: dict, picture: Path) -> str:
    machine = content.get("machine") or {}
    return (
        f"# TensorRT on {_an(machine.get('gpu', 'a GPU'))}\n\n"
        f"Made by `scripts/gpu_check.sh --report` out of what `--suite` measured: TensorRT {content.get('tensorrt')}, "
        f"PyTorch {machine.get('torch')}. [tensorrt.md](tensorrt.md) says how it is repeated.\n\n"
        f"![average times against the batch size, one line a precision]({picture.name})\n"
    )


def _an(name: str) -> str:
    return f"an {name}" if name[:1] in "AEIOUN" else f"a {name}"


def _networks(steps: dict) -> str:
    """Distances of the logits, a network a line."""
    lines = ["## Every network, beside references\n", _NETWORKS_TEXT]
    lines += [
        "| network | off PyTorch's fp32: largest | rms | other start or end | off the double: largest | rms "
        "| the double in half: largest | rms |",
        "| --- |" + " ---: |" * 7,
    ]
    names = [key.removeprefix("logits: ") for key in steps if key.startswith("logits: ")]
    for name in names:
        exact = steps[f"logits: {name}"].get("result") or {}
        double = steps.get(f"double: {name}", {}).get("result") or {}
        cells = [_number(exact, "largest"), _number(exact, "rms"), _windows(exact)]
        cells += [_number(found, key) for found in (double, double.get("in_half", {})) for key in ("largest", "rms")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += _fake_quantized(steps)
    pairs = steps.get("pairs", {}).get("result") or {}
    lines += ["", "| the same network twice | largest difference | rms |", "| --- | ---: | ---: |"] if pairs else []
    lines += [f"| {pair} | {_number(found, 'largest')} | {_number(found, 'rms')} |" for pair, found in pairs.items()]
    return "\n".join(lines) + "\n" if names else ""


def _fake_quantized(steps: dict) -> list[str]:
    """The same int8 networks beside PyTorch's, which rounds what the dense layers read and nothing else."""
    names = {"bundled": "calibrated", "qat": "QAT", "qat all": "QAT `-iln -imh`"}
    found = {key: steps.get(f"fake-quantized: {key}", {}).get("result") or {} for key in names}
    rows = [(key, name, row) for key, rows in found.items() for name, row in rows.items()]
    lines = [
        "",
        "PyTorch's fake-quantized network rounds what its dense layers read, and nothing else. Where the channels' ranges are "
        "known, it evens them out, as engines do but those with add + norm in int8 (`-iln`, packed):",
        "",
        "| ranges | network | off PyTorch's fake-quantized network: largest | rms |",
        "| --- | --- | ---: | ---: |",
    ]
    for key, name, row in rows:
        name = f"{name} (off its own fp32)" if name.startswith("PyTorch") else name
        lines.append(f"| {names[key]} | {name} | {_number(row, 'largest')} | {_number(row, 'rms')} |")
    return lines if rows else []


_NETWORKS_TEXT = """Windows of real questions, the bundled model; Megatron's network has random weights, which PyTorch has no
likeness of. The *double* (tests/tensorrt_double) computes the same int8 network in numpy float64; *in half* is how far it
is from that where it rounds floats between layers to half, and adds up in float64: what lies near the middle of two of
int8's steps goes to the other one then, and so far off an engine of `--fp16` may be.
"""


def _number(found: dict, name: str) -> str:
    return f"{found[name]:.4f}" if name in found else ""


def _windows(found: dict) -> str:
    return f"{found['other_argmax']} of {found['windows']}" if found else ""


def _answers(steps: dict) -> str:
    found = {key.removeprefix("answers: "): entry.get("result") for key, entry in steps.items() if "answers: " in key}
    found = {name: result for name, result in found.items() if result}
    lines = ["## Answers\n", "| network | EM | F1 |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {row['exact_match']:.2f} | {row['f1']:.2f} |" for name, row in found.items()]
    return "\n".join(lines) + "\n" if found else ""


def _table(rows: list[Row]) -> str:
    """A table for each model and length: a line each batch, a column each name; average ms."""
    text = "## demoBERT's table\n\nAverage ms of one batch. The CSV has median, 95th and 99th percentile.\n"
    for model, tokens in dict.fromkeys((row.model, row.tokens) for row in rows):
        cells = {(row.batch, row.name): row for row in rows if (row.model, row.tokens) == (model, tokens)}
        names = list(dict.fromkeys(name for _, name in cells))
        ratios = [f"{precision} / {BASELINE}" for precision in _ENGINES]
        lines = [f"\n### {model}, {tokens} tokens\n", f"| batch | {' | '.join([*names, *ratios])} |"]
        lines += ["| ---: |" + " ---: |" * (len(names) + len(ratios))]
        for batch in dict.fromkeys(batch for batch, _ in cells):
            times = {name: cells[batch, name].times["average_ms"] for name in names if (batch, name) in cells}
            shown = [f"{times[name]:.3f}" if name in times else "" for name in names]
            shown += [_ratio(times, precision) for precision in _ENGINES]
            lines.append(f"| {batch} | {' | '.join(shown)} |")
        text += "\n".join(lines) + "\n"
    return text if rows else ""


#: Precision → the engines of the whole network in it.
_ENGINES = {"int8": ("int8", "packed int8", "interleaved int8"), "fp16": ("fp16", "packed fp16")}


def _ratio(times: dict, precision: str) -> str:
    """The fastest engine's time as a share of the baseline's."""
    engines = [ms for name, ms in times.items() if name.removesuffix(GRAPH) in _ENGINES[precision]]
    return f"{min(engines) / times[BASELINE]:.2f}" if engines and BASELINE in times else ""


def _loadgen(steps: dict) -> str:
    """What MLPerf's LoadGen said, a line a scenario."""
    lines = [
        "## MLPerf's LoadGen\n",
        "Windows as long as those of the SQuAD file, of random tokens.\n",
    ]
    lines += ["| engine, scenario | LoadGen says | samples/s | 99 %, ms | bound, ms |", "| --- | --- |" + " ---: |" * 3]
    found = {
        key.removeprefix("loadgen: "): step.get("result") for key, step in steps.items() if key.startswith("loadgen: ")
    }
    for name, result in found.items():
        if result:
            shown = [f"{result['rate']:.1f}"]
            shown += ["" if ms is None else f"{ms:.2f}" for ms in (result["percentiles"].get("99"), result["bound_ms"])]
            lines.append(f"| {name} | {'VALID' if result['valid'] else 'INVALID'} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n" if any(found.values()) else ""


def _layers(steps: dict) -> str:
    """Where an engine's time goes: TensorRT's own times of its layers, those of more than a hundredth of the time."""
    text = "## Where the time goes\n\nms of all layers of a kind, each timed by itself: the sum is more than a run takes.\n"
    found: dict = {}  # an engine has a profile each, one line of batches together
    for key, entry in steps.items():
        if key.startswith("layers: ") and entry.get("result"):
            place, _, kind = key.removeprefix("layers: ").partition(", ")
            found.setdefault((place.rpartition(" × ")[0], kind), {}).update(entry["result"])
    for (place, kind), by_batch in found.items():
        batches = sorted(by_batch, key=int)
        sums = {batch: sum(layer["ms"] for layer in by_batch[batch].values()) for batch in batches}
        names = dict.fromkeys(name for batch in batches for name in by_batch[batch])
        large = [n for n in names if any(_ms(by_batch[b], n) > sums[b] / 100 for b in batches)]
        lines = [f"\n### {place}, {kind}\n", f"| layers | how many | {' | '.join(f'batch {b}' for b in batches)} |"]
        lines.append("| --- | ---: |" + " ---: |" * len(batches))
        for name in large:
            many = max(by_batch[batch].get(name, {"layers": 0})["layers"] for batch in batches)
            shown = one_line(name, 120).replace("|", "/")
            lines.append(f"| {shown} | {many} | {' | '.join(f'{_ms(by_batch[b], name):.3f}' for b in batches)} |")
        count = max(sum(layer["layers"] for layer in by_batch[batch].values()) for batch in batches)
        lines.append(f"| sum | {count} | {' | '.join(f'{sums[batch]:.3f}' for batch in batches)} |")
        text += "\n".join(lines) + "\n"
    return text if found else ""


def _ms(layers: dict, name: str) -> float:
    return layers.get(name, {"ms": 0.0})["ms"]


def _tried(steps: dict, rows: list[Row]) -> str:
    """A line for each engine and batch of the part "tried": average ms without and with a CUDA graph, beside the baseline."""
    text = "## What was tried\n\nAverage ms; as a share of torch.compile's in a CUDA graph.\n\n"
    lines = ["| where | engine | batch | ms | in a CUDA graph | share |", "| --- | --- |" + " ---: |" * 4]
    baseline = {(row.model, row.tokens, row.batch): row.times["average_ms"] for row in rows if row.name == BASELINE}
    found = {key.removeprefix("tried: "): entry.get("result") for key, entry in steps.items() if "tried: " in key}
    for key, result in found.items():
        place, _, kind = key.partition(", ")
        for batch in (result or {"times": {kind: {}}})["times"].get(kind, {}):
            both = [result["times"].get(name, {}).get(batch, {}).get("average_ms") for name in (kind, f"{kind}{GRAPH}")]
            peer = baseline.get((result["model"], result["tokens"], int(batch)))
            shown = ["" if ms is None else f"{ms:.3f}" for ms in both]
            shown.append(f"{both[1] / peer:.2f}" if both[1] and peer else "")
            lines.append(f"| {place} | {kind} | {batch} | {' | '.join(shown)} |")
    return text + "\n".join(lines) + "\n" if found else ""


def _failures(steps: dict) -> str:
    failed = [f"- {key}: {one_line(entry['error'])}" for key, entry in steps.items() if "error" in entry]
    return "## What failed\n\n" + "\n".join(failed) + "\n" if failed else ""


def _write_csv(rows: list[Row], path: Path) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "tokens", "batch", "engine", *TIMES))
        for row in rows:
            times = (f"{row.times[column]:.4f}" if column in row.times else "" for column in TIMES)
            writer.writerow((row.model, row.tokens, row.batch, row.name, *times))


def draw(rows: list[Row], path: Path) -> None:
    """A panel for each model and length, both axes logarithmic, a line a precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((row.model, row.tokens) for row in rows))
    if len(panels) > _MOST_PANELS:
        raise DemoBertError(f"the table is of {len(panels)} models and lengths: no picture has room for them")
    columns = min(2, len(panels))
    size = {"figsize": (6 * columns, 4.5 * -(-len(panels) // columns)), "squeeze": False, "layout": "constrained"}
    figure, axes = pyplot.subplots(-(-len(panels) // columns), columns, **size)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for panel, axis in zip(panels, axes.flat):
        _draw_panel(axis, panel, [row for row in rows if (row.model, row.tokens) == panel and _is_drawn(row.name)])
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
    pyplot.close(figure)


def _draw_panel(axis, panel: tuple, rows: list[Row]) -> None:
    for name in dict.fromkeys(row.name for row in rows):
        line = [(row.batch, row.times["average_ms"]) for row in rows if row.name == name]
        axis.plot(*zip(*line), marker=".", label=name.removesuffix(GRAPH).replace("$", r"\$"))
    model, tokens = panel
    title = f"{model}, {tokens} tokens".replace("$", r"\$")  # else it begins a formula
    axis.set(title=title, xlabel="batch", ylabel="ms", xscale="log")
    axis.grid(alpha=0.3)
    if rows:
        batches = sorted({row.batch for row in rows})
        axis.set_xticks(batches, map(str, batches))
        axis.minorticks_off()
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize="x-small")


def _is_drawn(name: str) -> bool:
    """Engines in CUDA graphs, as PyTorch and the products are: one line a precision."""
    return name.endswith(GRAPH) or name in (BASELINE, "SDPA", "products alone, fp8")
