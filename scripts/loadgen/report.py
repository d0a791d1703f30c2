"""The tables of a measurement, and what in it is not by MLPerf's rules."""

from scripts.loadgen.one_run import RunResult

#: MLPerf's rules for BERT that a flag may depart from.
_RULE_SECONDS, _RULE_SAMPLES = 600, 24_576


def performance_table(results: list[RunResult]) -> str:
    """Markdown, a line for each scenario."""
    lines = [
        "| scenario | LoadGen says | samples/s | median, ms | 90 %, ms | 99 %, ms | samples |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        latencies = [result.percentiles.get(percent) for percent in ("50", "90", "99")]
        shown = " | ".join("" if latency is None else f"{latency:.2f}" for latency in latencies)
        verdict = "VALID" if result.valid else "INVALID"
        lines.append(f"| {result.scenario} | {verdict} | {result.rate:.2f} | {shown} | {result.samples} |")
    return "\n".join(lines)


def remarks(results: list[RunResult]) -> list[str]:
    """What there is to say below the table, a line each."""
    by_name, lines = {result.scenario: result for result in results}, []
    if server := by_name.get("Server"):
        lines.append(
            f"Server: {server.target:.2f} queries/s asked for, 99 % to be answered within {server.bound_ms:.2f} ms"
        )
        if offline := by_name.get("Offline"):
            lines.append(f"Server / Offline: {server.rate / offline.rate:.3f}")
    lines += [f"{result.scenario} is INVALID: {why_invalid(result)}" for result in results if not result.valid]
    return lines


def why_invalid(result: RunResult) -> str:
    """LoadGen's reason. It gives none for early stopping: too few queries were late, but of too few to be sure."""
    if result.reasons:
        return result.reasons
    if not result.within_bound:
        return "the latency bound is exceeded"
    return "LoadGen asks for more queries to be sure of the bound (early stopping): a longer --min-duration, or a lower rate"


def accuracy_table(rows: list[dict], reference: float | None) -> str:
    """Markdown of rows {"scenario", "f1", "exact_match"}, in percent, with the verdicts of MLPerf's two targets."""
    heads = ["accuracy", "F1", "exact match"]
    heads += ["of the float engine's F1", "99 %", "99.9 %"] if reference else []
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in rows:
        cells = [row["scenario"], f"{row['f1']:.3f}", f"{row['exact_match']:.3f}"]
        if reference:
            share = 100 * row["f1"] / reference
            cells += [f"{share:.2f} %", *("passed" if share >= target else "failed" for target in (99, 99.9))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def departures(args, samples: int) -> list[str]:
    """Which of MLPerf's rules for performance runs the flags depart from, a line each."""
    found, most = [], min(samples, _RULE_SAMPLES)
    if "PerformanceOnly" not in args.mode:
        return found
    if args.min_duration < _RULE_SECONDS:
        found.append(f"a run takes {args.min_duration:g} s at least, MLPerf's {_RULE_SECONDS} s (--min-duration)")
    if "Offline" in args.scenario and args.min_queries and args.min_queries < most:
        found.append(
            f"Offline has {args.min_queries} samples or more, MLPerf's as many as the data, {most} (--min-queries)"
        )
    if "Server" in args.scenario:
        found.append("the latency bound is this run's own; MLPerf's for BERT-large is 130 ms (--latency-bound)")
    if any(seed is not None for seed in (args.qsl_seed, args.sample_seed, args.schedule_seed)):
        found.append("seeds are not those that MLPerf has published (--qsl-seed, --sample-seed, --schedule-seed)")
    return found
