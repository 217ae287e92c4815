"""Label agreement of quantized file-type classifiers with the original, on real files of this machine.

    python benchmarks/files.py magika.onnx [--files 2000] [--folder FOLDER ...] [--store files]

For a model that takes bytes as Magika's does (one int32 input, (batch, 2048): the first and the last 1024 bytes of a
file without surrounding blanks, padded with 256; Apache-2.0 model of the package ``magika``). Files are drawn from the
folders with at most an equal share for every ending; those for calibration are others than those for judging. Every
contender is built in a process of its own; all are then timed in turns, one file at a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness.process import run_measured
from harness.tables import document, markdown, public

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "harness"))
from inputs import open_session  # noqa: E402
from latency import interleaved, summary  # noqa: E402

#: Bytes from either end, of the blocks that they are taken from, and of the smallest file worth asking about; filler.
ENDS, BLOCK, SMALLEST, PADDING = 1024, 4096, 16, 256
CALIBRATION = 200
HEADER = ("result", "bytes", "build s", "label agreement", "largest change", "median ms", "speed")


def features(data: bytes) -> np.ndarray:
    """What the model sees of a file, (2048,) int32."""
    head, tail = data[:BLOCK].lstrip()[:ENDS], data[-BLOCK:].rstrip()[-ENDS:]
    row = np.full(2 * ENDS, PADDING, np.int32)
    row[: len(head)] = np.frombuffer(head, np.uint8)
    row[2 * ENDS - len(tail) :] = np.frombuffer(tail, np.uint8)
    return row


def find_files(folders: list[Path], count: int, seed: int = 0) -> list[Path]:
    """Files of many kinds, the same for the same folders: in turns by ending, in a seeded order."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size >= SMALLEST:
                kinds[path.suffix.lower()].append(path)
    rng = np.random.default_rng(seed)
    piles = [[paths[i] for i in rng.permutation(len(paths))] for _, paths in sorted(kinds.items())]
    drawn: list[Path] = []
    for turn in range(max(map(len, piles), default=0)):
        drawn += [pile[turn] for pile in piles if turn < len(pile)]
        if len(drawn) >= count:
            break
    order = rng.permutation(min(len(drawn), count))
    return [drawn[i] for i in order]


def build(name: str, model: Path, out: Path, samples: Path, timeout: float) -> tuple[float, str | None]:
    """Make one contender's file: seconds, and why it failed."""
    if name.startswith("optc"):
        command = [sys.executable, "-m", "optc", model, "-O3", "--no-measure", "--calib", samples, "-o", out]
        command += name.split()[1:]
    else:
        command = [sys.executable, HERE / "harness" / "quantizers.py", name, model, out, samples]
    outcome = run_measured([*command], timeout, cwd=HERE.parent)
    return outcome.seconds, outcome.failure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--folder", type=Path, action="append", help="default: /usr and the folder of Python")
    parser.add_argument("--contenders", default="ort-dynamic,ort-dynamic-channel,ort-static,optc")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--timeout", type=float, default=900.0)
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.md")
    told = parser.parse_args()
    folders = told.folder or [Path("/usr"), Path(sys.prefix)]
    files = find_files(folders, told.files + CALIBRATION)
    rows = np.stack([features(path.read_bytes()) for path in files])
    calibration, judged = rows[:CALIBRATION], rows[CALIBRATION:]
    lines = [list(HEADER)]
    with tempfile.TemporaryDirectory() as folder:
        original = open_session(str(told.model), True, told.threads)
        feed = original.get_inputs()[0].name
        samples = Path(folder) / "samples.npz"
        np.savez(samples, **{f"{feed}.{index}": row[None] for index, row in enumerate(calibration)})
        sessions, built = {"original": original}, {"original": (told.model, 0.0)}
        for number, name in enumerate(told.contenders.split(",")):
            out = Path(folder) / f"{number}.onnx"
            seconds, failure = build(name, told.model, out, samples, told.timeout)
            if failure is not None:
                lines.append([name, f"failed: {failure}"])
                continue
            sessions[name], built[name] = open_session(str(out), True, told.threads), (out, seconds)
        outputs = {
            name: np.concatenate([session.run(None, {feed: row[None]})[0] for row in judged])
            for name, session in sessions.items()
        }
        times = interleaved(sessions, {feed: judged[:1]}, told.seconds, 10_000)
        reference = outputs["original"]
        for name, (path, seconds) in built.items():
            found, timing = outputs[name], summary(times[name], times["original"])
            agreement = float(np.mean(found.argmax(1) == reference.argmax(1)))
            change = float(np.abs(found - reference).max())
            figures = (f"{agreement:.2%}", f"{change:.3f}", f"{timing['median_ms']:.2f}", f"{timing['speed']:.2f}")
            lines.append([name, str(path.stat().st_size), f"{seconds:.1f}", *figures])
    table = markdown(lines)
    print(table)
    conditions = f"{len(judged)} files, {CALIBRATION} others for calibration, {told.threads} threads without spinning"
    if told.store:
        versions = [{name: version(name) for name in ("onnx", "onnxruntime", "numpy")}]
        text = document(
            "Label agreement on real files", "files.py", public(sys.argv[1:]), versions, conditions, {"Labels": table}
        )
        (HERE / "results" / f"{told.store}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
