"""What follows from the facts: for each thing that can be done, whether it suits, why, and the command to try."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from exporter.advice.facts import Facts
from exporter.fixing import undecided
from exporter.tables import milliseconds, quantity
from runtime.nouns import counted, out_of

VERDICTS = ("try", "maybe", "no")
"""From what to try first to what not to try."""

_TINY_SECONDS = 5e-5
_SMALL_SECONDS = 2e-4
_SMALL_PARAMETERS = 20_000
_MUCH = 0.5
_SOME = 0.15
_HARMLESS = 0.05
_FEWEST_BLOCKS = 3


@dataclass(frozen=True)
class Advice:
    """One thing that can be done with a model.

    Attributes:
        what: it.
        verdict: one of ``VERDICTS``.
        reason: why.
        basis: ``measured`` on this machine, or ``computed`` from the file.
        command: what to type next; "" where there is nothing to type.
        gain: share of the time, or of the file where no time is known, that it may save at best; orders what to try.
    """

    what: str
    verdict: str
    reason: str
    basis: str
    command: str = ""
    gain: float = 0.0


def advise(facts: Facts) -> list[Advice]:
    """Judge everything that can be done with a model.

    Returns:
        What to try first comes first.
    """
    found = [rule(facts) for rule in _RULES]
    return sorted((a for a in found if a is not None), key=lambda a: (VERDICTS.index(a.verdict), -a.gain))


def _typed(facts: Facts, command: str, *options: str, output: str = "", calib: bool = True) -> str:
    """A command with the real names of files."""
    words = ["secateur", command, str(facts.path)]
    if output:
        words += ["-o", f"{facts.path.stem}-{output}"]
    words += options
    if calib and facts.calib is not None:
        words += ["--calib", facts.calib]
    for shape in facts.shapes:
        words += ["--shape", shape]
    return shlex.join(words)


def _accelerated(facts: Facts) -> bool:
    return facts.device != "ort-cpu"


def _widths(facts: Facts) -> Advice:
    total = max(facts.before.parameters, 1)
    if facts.cut is None:
        frozen = facts.groups.frozen
        why = f": {frozen[0].reason.text}" if frozen else ""
        return Advice("structured widths", "no", f"no group of units can be removed{why}", "computed",
                      _typed(facts, "inspect", calib=False))  # fmt: skip
    share = facts.prunable / total
    said = f"{counted(len(facts.groups), 'group holds', 'groups hold')} {100 * share:.0f} % of the parameters"
    if facts.left < 1:
        said += f"; {facts.budget} leaves {100 * facts.left:.0f} % of the MACs"
    command = _typed(facts, "prune", *facts.budget.split(), output="half.onnx")
    if facts.timing is None:
        verdict = "maybe" if share > _SOME else "no"
        return Advice("structured widths", verdict, f"{said}; whether time follows was not measured", "computed",
                      command, (1 - facts.left) * share)  # fmt: skip
    gain = facts.timing.working * (1 - facts.left)
    said += f"; layers that multiply take {100 * facts.timing.working:.0f} % of the time, so {100 * gain:.0f} % less at best"
    if facts.share("overhead") > _MUCH:
        said += f", and {100 * facts.share('overhead'):.0f} % of the time goes to kernels too short to gain from it"
        return Advice("structured widths", "no", said, "measured", command, gain)
    if _tiny(facts):
        return Advice(
            "structured widths",
            "no",
            f"{said}, of {milliseconds(facts.timing.profile.latency)}",
            "measured",
            command,
            gain,
        )
    return Advice("structured widths", "try" if gain > _SOME else "maybe", said, "measured", command, gain)


def _tiny(facts: Facts) -> bool:
    """Whether a run is measured to be so short that what is around the kernels decides."""
    latency = facts.timing.profile.latency if facts.timing is not None else 1.0
    return latency < _TINY_SECONDS or (latency < _SMALL_SECONDS and facts.share("overhead") > _MUCH)


def _small(facts: Facts) -> Advice | None:
    if facts.timing is not None:
        if not _tiny(facts):
            return None
        latency, overhead = facts.timing.profile.latency, facts.share("overhead")
        return Advice(
            "anything smaller",
            "no",
            f"too small to be worth it: a run takes {milliseconds(latency)}, {100 * overhead:.0f} % of it in kernels so "
            "short that starting them counts; larger batches gain more, where the model takes them",
            "measured",
            _typed(facts, "profile", calib=False),
        )
    if facts.before.parameters < _SMALL_PARAMETERS:
        return Advice(
            "anything smaller", "maybe",
            f"{quantity(facts.before.parameters)} parameters are few: starting kernels may take longer than they do",
            "computed", _typed(facts, "profile", calib=False),
        )  # fmt: skip
    return None


def _memory(facts: Facts) -> Advice | None:
    share = facts.share("memory")
    if share < _SOME or facts.timing is None:
        return None
    return Advice(
        "fewer MACs alone", "no" if share > _MUCH else "maybe",
        f"{100 * share:.0f} % of the time is bound by memory, where time follows bytes, not MACs: narrower widths help "
        "as far as they move fewer bytes, fewer bits may too",
        "measured", _typed(facts, "profile", calib=False),
    )  # fmt: skip


def _layers(facts: Facts) -> Advice:
    count = len(facts.blocks)
    if not count:
        return Advice("layers", "no", "there is no residual block that can go whole", "computed")
    chosen = max(count // 4, 1)
    said = f"{counted(count, 'residual block')} can go whole, with all kernels"
    command = _typed(facts, "prune", "--layers", str(chosen), output=f"less-{chosen}.onnx")
    gain = chosen / count * max((b.macs for b in facts.blocks), default=0) * count / max(facts.before.macs or 1, 1)
    gain = min(gain, 1.0)
    if count < _FEWEST_BLOCKS:
        return Advice("layers", "maybe", f"{said}; so few are each likely to matter", "computed", command, gain / 2)
    overhead = facts.share("overhead")
    if overhead > _SOME:
        return Advice("layers", "try", f"{said}; {100 * overhead:.0f} % of the time is spent on starting short kernels, "
                      "which narrower ones do not save", "measured", command, max(gain, overhead / 4))  # fmt: skip
    return Advice("layers", "maybe", f"{said}; it costs accuracy that only data or training give back", "computed",
                  command, gain / 2)  # fmt: skip


def _sparse(facts: Facts) -> Advice:
    total, able, likely = facts.weights
    if not total or not able:
        return Advice("2:4 sparsity", "no", "no weight of a layer can have the pattern", "computed",
                      _typed(facts, "inspect", "--sparsity", calib=False))  # fmt: skip
    said = f"{100 * able / total:.0f} % of the weights of layers can be 2:4"
    if "tensorrt" not in facts.device:
        return Advice("2:4 sparsity", "no", f"{said}, but {facts.device} has no sparse kernels: the zeros are computed",
                      "computed", _typed(facts, "inspect", "--sparsity", calib=False))  # fmt: skip
    verdict = "try" if likely > _MUCH * total else "maybe" if likely else "no"
    return Advice("2:4 sparsity", verdict, f"{said}, {100 * likely / total:.0f} % are large enough for sparse kernels to "
                  "gain (guessed from sizes; needs an Ampere GPU or later, fp16 or int8)", "computed",
                  _typed(facts, "sparsify", output="sparse.onnx"), likely / total / 4)  # fmt: skip


def _unstructured(facts: Facts) -> Advice:
    total = facts.weights[0]
    if not total:
        return Advice("unstructured sparsity", "no", "no layer has a constant weight", "computed")
    return Advice("unstructured sparsity", "no", "no backend here has kernels that skip single zeros, so nothing gets "
                  "faster; with --storage sparse the file shrinks from two thirds of zeros on", "computed",
                  _typed(facts, "sparsify", "--pattern", "0.9", "--storage", "sparse", output="zeros.onnx"))  # fmt: skip


def _quantize(facts: Facts) -> Advice:
    if facts.quantized or facts.codes > _MUCH:
        return Advice("quantize", "no", f"it is quantized already ({100 * facts.codes:.0f} % of the parameters in 8 bits "
                      "or fewer)", "computed")  # fmt: skip
    if facts.halves > _MUCH:
        return Advice(
            "quantize", "no", "its weights have 16 bits; quantization starts from the 32-bit model", "computed"
        )
    weights = _typed(facts, "quantize", "--precision", "int8-weight", "--seconds", "1", output="int8w.onnx")
    if not facts.layers:
        if facts.recurrent and not _accelerated(facts):
            return Advice("quantize", "maybe", f"{counted(facts.recurrent, 'recurrent layer')} can store weights in 8 bits: "
                          "a smaller file, computed in float", "computed", weights, 0.1)  # fmt: skip
        return Advice("quantize", "no", "no layer has a 32-bit weight", "computed")
    said = f"{counted(facts.layers, 'layer has', 'layers have')} 32-bit weights"
    if _accelerated(facts):
        command = _typed(facts, "quantize", "--precision", "int8", "--profile", "tensorrt", output="int8.onnx")
        return Advice("quantize", "maybe", f"{said}; the gain takes a measurement on the device", "computed",
                      command if facts.calib else weights, 0.2)  # fmt: skip
    from exporter.quantization.processor import saturates

    share, basis = (facts.matrices, "computed") if facts.timing is None else (facts.timing.products, "measured")
    if share > _MUCH:
        where = "weights are" if facts.timing is None else "time is"
        slow = "; 7 bits on this processor (no VNNI), which is slower" if saturates() else ""
        return Advice("quantize", "maybe" if slow else "try", f"{100 * share:.0f} % of the {where} in products of "
                      f"matrices, which compute on integers without data{slow}", basis,
                      _typed(facts, "quantize", "--precision", "int8-dynamic", "--seconds", "1", output="int8.onnx"),
                      share * (0.2 if slow else 0.5))  # fmt: skip
    command = _typed(facts, "quantize", "--precision", "int8", "--seconds", "1", output="int8.onnx")
    if facts.calib is None:
        return Advice("quantize", "maybe", f"{said}; without data only weights can be quantized, which makes the file "
                      "smaller, not faster", "computed", weights, 0.1)  # fmt: skip
    if saturates():
        return Advice("quantize", "maybe", f"{said}; sums of 8-bit products overflow on this processor (no VNNI), so "
                      "int8 gets 7 bits and is seldom faster; the file becomes a quarter", "measured", command, 0.1)  # fmt: skip
    return Advice("quantize", "try", f"{said}, and this processor adds 8-bit products without overflow", "measured",
                  command, 0.3)  # fmt: skip


def _align(facts: Facts) -> Advice:
    if facts.timing is None:
        return Advice("align", "maybe", "whether odd widths cost time here was not measured", "computed",
                      _typed(facts, "lint", calib=False))  # fmt: skip
    share = facts.share("alignment")
    if share < 0.01:
        return Advice(
            "align", "no", "no convolution leaves the fast layout because of its number of channels", "measured"
        )
    return Advice("align", "try" if share > _SOME else "maybe",
                  f"convolutions with odd numbers of channels take {100 * share:.0f} % of the time outside the fast layout",
                  "measured", _typed(facts, "align", output="aligned.onnx", calib=False), share / 2)  # fmt: skip


def _fix(facts: Facts) -> Advice | None:
    found = undecided(facts.graph)
    if not found.branches:
        return None
    shapes = facts.graph.binding.shapes
    fixes = [f"{name}:{'x'.join(map(str, shapes[name]))}" for name in found.sized]
    fixes += [f"{name}=VALUE" for name in found.switches]
    names = ", ".join((*found.sized, *found.switches))
    command = ["secateur", "convert", str(facts.path), "-o", f"{facts.path.stem}-fixed.onnx"]
    command += [word for fix in fixes for word in ("--fix", fix)]
    return Advice("fixed inputs", "try", f"sizes or values of {names} decide {counted(found.branches, 'branch', 'branches')} "
                  "in every run; where these never change, they can be decided once, with what they really are",
                  "computed", shlex.join(command), 0.2)  # fmt: skip


def _half(facts: Facts) -> Advice:
    if facts.halves > _MUCH:
        return Advice("half precision", "no", "it is in half precision already", "computed")
    if not _accelerated(facts):
        return Advice("half precision", "no", "ONNX Runtime's CPU kernels compute in fp32: casts would be added; only the "
                      "file is halved", "computed")  # fmt: skip
    if facts.quantized:
        return Advice("half precision", "no", "it is quantized", "computed")
    return Advice("half precision", "try", f"{facts.device} computes in fp16; overflows are looked for on the inputs "
                  "given", "computed", _typed(facts, "convert", "--precision", "fp16", output="fp16.onnx"), 0.4)  # fmt: skip


def _engine(facts: Facts) -> Advice:
    if "tensorrt" not in facts.device:
        return Advice("engine build", "no", f"{facts.device} runs the ONNX file itself", "computed")
    backend = facts.device if facts.device in ("tensorrt", "tensorrt-rtx") else "tensorrt"
    if facts.missing:
        return Advice("engine build", "maybe", f"it cannot run here: {facts.missing}", "computed", "secateur backends")
    return Advice("engine build", "try", f"{backend} is here", "computed",
                  _typed(facts, "build", "--backend", backend, output="model.engine", calib=False), 0.5)  # fmt: skip


def _data(facts: Facts) -> Advice | None:
    if facts.calib is None:
        return Advice("compensation", "no", "there are no data, so layers that stay cannot be fitted, and magnitude alone "
                      "is a poor judge: give --calib DATA (a few hundred unlabelled inputs)", "computed")  # fmt: skip
    if facts.damage is None:
        if not len(facts.groups):
            return None
        return Advice("compensation", "try", f"data are given; what each group costs was not looked at: {facts.unlooked}",
                      "computed", _typed(facts, "sensitivity"), 0.05)  # fmt: skip
    known = [(d.damage[0], d.name) for d in facts.damage if d.damage]
    cheap = [name for value, name in known if value < _HARMLESS]
    if not known:
        return Advice(
            "compensation", "no", "no linear layer reads what could be cut, so none can be fitted", "computed"
        )
    worst = max(known)
    return Advice("compensation", "try" if cheap else "maybe", f"predicted: halved alone, {out_of(len(cheap), len(known), 'group', 'changes', 'change')} "
                  f"the outputs by less than {100 * _HARMLESS:.0f} % of their variance; the most harmful is {worst[1]} "
                  f"({worst[0]:.2g})", "computed",
                  _typed(facts, "prune", "--max-drop", "1%", output="smallest.onnx"), 0.05)  # fmt: skip


def _embedding(facts: Facts) -> Advice | None:
    if facts.embedded < _MUCH:
        return None
    return Advice("tables of embeddings", "maybe", f"{100 * facts.embedded:.0f} % of the parameters are rows that are "
                  "looked up: no time, only size; --io INPUT:ids removes ids that do not occur", "computed",
                  _typed(facts, "inspect", calib=False))  # fmt: skip


_RULES: tuple[Callable[[Facts], Advice | None], ...] = (
    _widths, _small, _memory, _layers, _sparse, _unstructured, _quantize, _align, _fix, _half, _engine, _data, _embedding,
)  # fmt: skip
