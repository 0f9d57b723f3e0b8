"""Findings from results of the run: data that does not fit the model, a slower or larger file."""

from json import dumps

from qtool.diagnosis.facts import Results
from qtool.report.schema import Finding, Size

# Classes whose names fit in a line of a recipe.
LISTED_CLASSES = 20
# The narrowest width that `bits.budget` tries without `among`.
NARROWEST = 3
# Operators named in the evidence of a slow file.
LISTED_OPS = 4


def data_findings(results: Results) -> list[Finding]:
    """Return findings about preprocessing and the order of the labels.

    The thresholds are those of the checks themselves (:mod:`qtool.metrics.preprocessing_scores`,
    :mod:`qtool.metrics.label_order`); the gain is of the float model's accuracy.

    Args:
        results: of the run.
    """
    findings = []
    check, order = results.preprocessing, results.label_order
    if check is not None and check.better is not None:
        better = check.better
        names = [each.name for each in check.others if each.is_far_above(check.current)]
        findings.append(
            Finding(
                finding=f"The preprocessing does not fit the model: "
                f"{' and '.join(names)} {'fits' if len(names) == 1 else 'fit'} better",
                evidence=f"on {check.samples} samples the float model scores "
                f"{check.current.accuracy:.1f} % with the recipe's ({check.current.settings}), "
                f"{better.accuracy:.1f} % with {better.settings}; the gain is of both files",
                recipe_lines=[
                    f"calibrate: {{preprocess: {better.settings}}}",
                    f"evaluate: {{preprocess: {better.settings}}}",
                ],
                predicted_gain_points=round(better.accuracy - check.current.accuracy, 2),
                predicted_cost_bytes=0,
            )
        )
    if order is not None:
        findings.append(
            Finding(
                finding=f"The order of the labels is not the model's: {order.name}",
                evidence=f"{order.describe()}; the gain is of both files",
                recipe_lines=_class_lines(order.order, order.classes),
                predicted_gain_points=round(order.relabelled - order.accuracy, 2),
                predicted_cost_bytes=0,
            )
        )
    return findings


def data_doubts(results: Results) -> list[str]:
    """Return why the data may not fit the model, in a sentence each.

    Args:
        results: of the run.
    """
    return [f"{each.finding}; the accuracy says little." for each in data_findings(results)]


def latency_finding(results: Results) -> list[Finding]:
    """Return a finding where the file is slower than the float model, with what costs it.

    Args:
        results: of the run.
    """
    timing, kernels = results.latency, results.kernels
    if timing is None or kernels is None or timing.speedup >= 1:
        return []
    times = {kernel.op: kernel.ms for kernel in timing.kernels or ()}
    ranked = sorted(
        kernels.float.items(), key=lambda item: (-times.get(item[0], 0), -item[1], item)
    )
    floats = ", ".join(
        f"{op} x{count} ({times[op]:.3g} ms)" if op in times else f"{op} x{count}"
        for op, count in ranked[:LISTED_OPS]
    )
    integer = sum(kernels.integer.values())
    parts = [f"{timing.quantized_ms:.3g} ms against {timing.float_ms:.3g} ms"]
    parts.append(f"{integer} integer kernels" if integer else "no integer kernel runs")
    parts += [f"in floats: {floats}"] if floats else []
    stray = len(kernels.stray_quantize)
    parts += [f"{stray} Q/DQ are left unfused around them"] if stray else []
    lines = [] if integer else ["bits: {activations: 8}"]
    return [
        Finding(
            finding=f"The file is slower than the float model, {1 / timing.speedup:.2f}-fold",
            evidence="; ".join(parts),
            recipe_lines=lines,
        )
    ]


def size_finding(results: Results) -> list[Finding]:
    """Return a finding where the file is larger than a gate allows, with the limit as a budget.

    Args:
        results: of the run.
    """
    size = results.size
    if size is None:
        return []
    limits = [
        gate.limit if gate.name == "max_bytes" else size.float_bytes / gate.limit
        for gate in results.gates
        if gate.name in ("max_bytes", "min_compression") and not gate.passed
    ]
    if not limits:
        return []
    limit, least = int(min(limits)), _least_bytes(size)
    return [
        Finding(
            finding="The file is larger than the gate allows",
            evidence=f"{size.quantized_bytes:,} bytes against {limit:,}; about {least:,} with all "
            f"weights at {NARROWEST} bits",
            recipe_lines=[f"bits: {{budget: {{bytes: {limit}}}}}"] if least <= limit else [],
        )
    ]


def _least_bytes(size: Size) -> int:
    """Estimate the bytes of the file with the narrowest weights that a budget tries by itself."""
    weights, bits = size.weight_payload_bytes or 0, size.weight_bits_mean or NARROWEST
    return int(size.quantized_bytes - weights * max(0.0, 1 - NARROWEST / bits))


def _class_lines(order: tuple[int, ...], classes: tuple[str, ...]) -> list[str]:
    """Return the recipe lines that put class names in the model's order; none without names."""
    if len(classes) != len(order) or len(classes) > LISTED_CLASSES:
        return ["evaluate: {classes: classes.txt}"] if classes else []
    names = [classes[label] for label in sorted(range(len(order)), key=order.__getitem__)]
    return [f"evaluate: {{classes: {dumps(names, ensure_ascii=False)}}}"]
