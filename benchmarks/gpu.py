"""optc's GPU artifacts on a GPU: whether they are right, and how fast, beside PyTorch, torch.compile and JAX.

    python benchmarks/gpu.py --export DIR [--models NAME,...]            # where torch and transformers are
    python benchmarks/gpu.py --build DIR --targets a100,h100             # where optc and Triton are; needs no GPU
    python benchmarks/gpu.py --artifacts DIR [--seconds 500] [--json F]  # on the GPU
    python benchmarks/gpu.py --artifacts DIR --device interpreter        # small ones, on the CPU: checks this script

Compiling ahead of time is what this is about, so the machine with the GPU compiles nothing of optc's: it needs Python,
NumPy, ml_dtypes and cuda-bindings to run artifacts, and torch, transformers and onnx for what is beside them; no
network, no other package, no installed optc. ``DIR`` without ``DIR/onnx`` is what has to be carried there.

Parts, in this order, each inside a share of ``--seconds``; what does not fit is listed as not measured:

* check: small models and layers in every way a run can be started, against ONNX Runtime's CPU kernels;
* models: whole models in 16 bits at batch 1, 8, 32, 128; optc and PyTorch eager in turns;
* compile: the same by ``torch.compile(mode="max-autotune")``, which records CUDA graphs;
* layers: single layers beside cuBLAS, cuDNN and PyTorch's attention (JAX where it is installed), and their roofline.

Times are milliseconds of one run among many back to back, by the GPU's own clock; the median of several rounds.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for _place in (ROOT, ROOT / "benchmarks"):
    if str(_place) not in sys.path:
        sys.path.insert(0, str(_place))  # the checkout is enough; nothing has to be installed

from harness import gpu_artifacts, gpu_cases, gpu_models  # noqa: E402
from harness.budget import Found, in_turns, say, work  # noqa: E402
from harness.tables import markdown, shown  # noqa: E402

BATCHES = (1, 8, 32, 128)
#: Of the time, for each part; what a part leaves goes to those after it.
SHARES = {"check": 0.15, "models": 0.35, "compile": 0.3, "layers": 0.2}
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "triton", "cuda-bindings", "jax", "numpy", "ml_dtypes")
#: What each mode needs besides this checkout.
NEEDS = {
    "export": ("torch", "transformers", "onnx", "onnxscript"),
    "build": ("numpy", "onnx", "onnx_ir", "onnxruntime", "triton", "ml_dtypes"),
    "cuda": ("numpy", "ml_dtypes", "cuda.bindings", "torch", "transformers", "onnx"),
    "interpreter": ("numpy", "ml_dtypes", "triton", "onnx", "onnx_ir"),
}


def lacking(mode: str) -> list[str]:
    """The packages that a mode needs and that are not here."""

    def there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ImportError:
            return False

    return [name for name in NEEDS[mode] if not there(name)]


# making ---------------------------------------------------------------------------------------------------------------


def export(folder: Path, names: Sequence[str]) -> list[str]:
    """Write models as ONNX, and small ones of the same kinds; what failed."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        for tiny in (True, False):
            path = folder / "onnx" / f"{gpu_models.slug(name)}{'.tiny' * tiny}.onnx"
            if path.is_file():
                continue
            try:
                gpu_models.export(name, path, tiny)
                print(f"{path.name}: {path.stat().st_size >> 10} KiB", flush=True)
            except Exception as error:  # of the exporter: the others go on
                path.unlink(missing_ok=True)
                failed.append(f"{path.name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
                print(failed[-1], flush=True)
    return failed


def build(
    folder: Path,
    targets: str,
    names: Sequence[str],
    batches: Sequence[int],
    layers: Sequence[gpu_cases.Case] = tuple(gpu_cases.CASES),
    small: Sequence[gpu_cases.Case] = tuple(gpu_cases.TINY),
) -> dict[str, Any]:
    """Compile all artifacts; what was made is written down after each one, and what is there is not made again."""
    onnx = importlib.import_module("onnx")
    onnx_ir = importlib.import_module("onnx_ir")
    path = folder / gpu_artifacts.BUILD
    told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"made": {}, "failed": {}}
    told["targets"] = targets

    def make(part: str, name: str, place: str, get: Callable[[], Any], after: Callable[[Path], None]) -> None:
        out = folder / part / f"{place}.optc"
        if str(out.relative_to(folder)) in told["made"] and out.is_dir():
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        key = str(out.relative_to(folder))
        try:
            told["made"][key] = {"part": part, "name": name, **gpu_artifacts.compiled(get(), targets, out)}
            after(out)
            told["failed"].pop(key, None)
        except Exception as error:  # of a model that cannot be compiled: the others go on
            told["made"].pop(key, None)
            told["failed"][key] = f"{type(error).__name__}: {str(error)[:600]}"
        print(key, told["made"].get(key) or told["failed"][key], flush=True)
        path.write_text(json.dumps(told, indent=1) + "\n")

    for case in small:
        for dtype in ("float", "float16"):
            model = case.model(dtype)

            def keep(out: Path, case: gpu_cases.Case = case, model: Any = model) -> None:
                gpu_artifacts.expected(model, case.feeds(model), out.with_suffix(".npz"))

            name = f"{case.name} {dtype}"
            make("check", name, f"{case.slug}_{dtype}", lambda model=model: onnx_ir.from_proto(model), keep)
    for name in names:
        source = folder / "onnx" / f"{gpu_models.slug(name)}.tiny.onnx"
        for batch in (1, 3):
            if source.is_file():
                feeds = gpu_models.MODELS[name].inputs(batch, True, "float32")

                def store(out: Path, source: Path = source, feeds: Any = feeds) -> None:
                    gpu_artifacts.expected(str(source), feeds, out.with_suffix(".npz"))

                get = lambda source=source, batch=batch: gpu_artifacts.fixed(source, batch)  # noqa: E731
                make("check", f"{name} tiny b{batch}", f"{source.stem.replace('.', '_')}_b{batch}", get, store)
    for case in layers:
        model = case.model("float16")
        make("layers", case.name, case.slug, lambda model=model: onnx_ir.from_proto(model), gpu_artifacts.strip)
    for batch in batches:
        for name in names:
            source = folder / "onnx" / f"{gpu_models.slug(name)}.onnx"
            if source.is_file():
                get = lambda source=source, batch=batch: gpu_artifacts.fixed(source, batch)  # noqa: E731
                make("models", f"{name} b{batch}", f"{source.stem}_b{batch}", get, gpu_artifacts.strip)
    path.write_text(json.dumps(told, indent=1) + "\n")
    del onnx
    return told


# measuring, in workers ------------------------------------------------------------------------------------------------


def worker(folder: Path, part: str, device: str, names: Sequence[str], seconds: float) -> None:
    """Measure some names of a part, and say what came of each."""
    peers = importlib.import_module("harness.gpu_peers")
    made = json.loads((folder / gpu_artifacts.BUILD).read_text())["made"]
    places = {entry["name"]: folder / key for key, entry in made.items() if entry["part"] in (part, _source(part))}
    share = max(min(seconds / max(len(names), 1), 4.0), 0.5)
    for name in names:
        try:
            say(name, _measure(peers, part, name, places.get(name), device, share))
        except Exception as error:  # what one name fails with is its result
            say(name, {"error": f"{type(error).__name__}: {str(error)[:600]}"})


def _source(part: str) -> str:
    return "models" if part == "compile" else part


def _measure(peers: Any, part: str, name: str, place: Path | None, device: str, seconds: float) -> Any:
    if part == "check":
        return peers.check(place, device)
    if part == "layers":
        case = peers.layer_of(name)
        with peers.Ours(place, case.feeds(case.model("float16"))) as ours:
            return in_turns({"optc": ours, **peers.layer_runs(case)}, peers.clock, seconds)
    model, _, batch = name.rpartition(" b")
    if part == "compile":
        run = peers.module_run(model, int(batch), True)
        return in_turns({"torch.compile": run}, peers.clock, seconds)
    with peers.Ours(place, gpu_models.MODELS[model].inputs(int(batch))) as ours:
        eager = peers.module_run(model, int(batch), False)
        return in_turns({"optc": ours, "torch": eager}, peers.clock, seconds)


# all of it ------------------------------------------------------------------------------------------------------------


def measure(folder: Path, device: str, seconds: float) -> dict[str, Found]:
    """Every part inside its share of the time."""
    made = json.loads((folder / gpu_artifacts.BUILD).read_text())["made"]
    found: dict[str, Found] = {}
    end, left = time.monotonic() + seconds, sum(SHARES.values())
    for part, share in SHARES.items():
        names = [entry["name"] for entry in made.values() if entry["part"] == _source(part)]
        if device != "cuda" and part != "check":
            found[part] = Found(left=names)
            continue
        box = (end - time.monotonic()) * share / left if device == "cuda" else end - time.monotonic()
        left -= share

        def command(waiting: Sequence[str], part: str = part, box: float = box) -> list[str]:
            return [
                sys.executable, str(Path(__file__).resolve()), "--artifacts", str(folder), "--device", device,
                "--worker", part, "--names", json.dumps(list(waiting)), "--seconds", str(box),
            ]  # fmt: skip

        found[part] = work(command, names, box)
        print(f"{part}: {len(found[part].results)} done, {len(found[part].failed)} failed, "
              f"{len(found[part].left)} not measured", flush=True)  # fmt: skip
    return found


def machine(device: str) -> dict[str, Any]:
    """Where it was measured, and with what."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    told: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "versions": versions, "device": device}
    if device == "cuda":
        query = "name,driver_version,memory.total,clocks.max.sm"
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
        told["device"] = done.stdout.strip().splitlines()[0] if done.stdout.strip() else "a GPU"
    return told


def peaks(device: str) -> tuple[float, float] | None:
    """Operations in 16 bits and bytes per second of a GPU; None for one that optc has no figures of."""
    from optc.ir.targets import builtin_targets  # noqa: PLC0415

    for target in builtin_targets().values():
        words = device.upper().replace("-", " ").split(",")[0].split()
        if target.arch and target.name.upper() in words and target.bandwidth:
            return target.peak["fp16"], target.bandwidth
    return None


def tables(found: Mapping[str, Found], peak: tuple[float, float] | None) -> str:
    """What was found, as text."""
    texts = []
    checks = found["check"]
    worst = max((max(ways.values()) for ways in checks.results.values()), default=0.0)
    texts.append(
        f"check: {len(checks.results)} right (worst relative error {worst:.1e}), {len(checks.failed)} wrong or failed"
    )
    lines = [["model", "optc ms", "quartiles", "torch ms", "torch.compile ms", "to torch", "to torch.compile"]]
    compiled = found["compile"].results
    for name, times in found["models"].results.items():
        ours, eager = times["optc"], times["torch"]["ms"]
        best = compiled.get(name, {}).get("torch.compile", {}).get("ms")
        lines.append([
            name, f"{ours['ms']:.3f}", f"{ours['low']:.3f}-{ours['high']:.3f}", f"{eager:.3f}", shown(best, ".3f"),
            f"{ours['ms'] / eager:.2f}", shown(ours["ms"] / best if best else None, ".2f"),
        ])  # fmt: skip
    if len(lines) > 1:
        texts.append(markdown(lines))
    lines = [["layer", "optc ms", "torch ms", "jax ms", "to torch", "roofline ms", "of roofline"]]
    for case in gpu_cases.CASES:
        times = found["layers"].results.get(case.name)
        if times is not None:
            ours, eager = times["optc"]["ms"], times["torch"]["ms"]
            least = case.roofline_ms(*peak) if peak else None
            lines.append([
                case.name, f"{ours:.4f}", f"{eager:.4f}", shown(times.get("jax", {}).get("ms"), ".4f"),
                f"{ours / eager:.2f}", shown(least, ".4f"), shown(least / ours if least else None, ".0%"),
            ])  # fmt: skip
    if len(lines) > 1:
        texts.append(markdown(lines))
    for part, result in found.items():
        texts += [f"{part}, failed: {name}: {why}" for name, why in result.failed.items()]
        if result.left:
            texts.append(f"{part}, not measured: " + ", ".join(result.left))
    return "\n\n".join(texts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_mutually_exclusive_group(required=True)
    modes.add_argument("--export", type=Path, metavar="DIR")
    modes.add_argument("--build", type=Path, metavar="DIR")
    modes.add_argument("--artifacts", type=Path, metavar="DIR")
    parser.add_argument("--targets", default="a100,h100")
    parser.add_argument("--models", default=",".join(gpu_models.MODELS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--device", choices=("cuda", "interpreter"), default="cuda")
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--names", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    mode = "export" if given.export else "build" if given.build else given.device
    missing = lacking(mode)
    if missing:
        print(f"not installed here: {', '.join(missing)}")
        if mode == "build":
            print("artifacts can be built anywhere, with --build, and carried to where the GPU is")
        return 2
    names = [name for name in given.models.split(",") if name in gpu_models.MODELS]
    if given.export:
        return 1 if export(given.export, names) else 0
    if given.build:
        told = build(given.build, given.targets, names, [int(size) for size in given.batches.split(",") if size])
        print(f"{len(told['made'])} made, {len(told['failed'])} failed")
        return 1 if told["failed"] else 0
    if given.worker:
        worker(given.artifacts, given.worker, given.device, json.loads(given.names), given.seconds)
        return 0
    started = time.monotonic()
    found = measure(given.artifacts, given.device, given.seconds)
    told = machine(given.device)
    text = tables(found, peaks(told["device"]))
    print("\n" + text)
    if given.json:
        parts = {part: vars(result) for part, result in found.items()}
        built = json.loads((given.artifacts / gpu_artifacts.BUILD).read_text())
        told |= {"seconds": round(time.monotonic() - started, 1), "parts": parts, "built": built}
        given.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 1 if found["check"].failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
