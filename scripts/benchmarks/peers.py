"""Time this project's CPU engine beside its peers: one checkpoint, the same inputs, in turn, in one process.

Latency (default): this engine (fp32, bf16, int8 with bf16), Hugging Face (eager, torch.compile; fp32, bf16), ONNX
Runtime on the Hugging Face export (fp32, dynamic INT8), OpenVINO on the same export with static shapes (f32, bf16),
NNCF's post-training quantization of this engine's float network (int8 with bf16).
Throughput (--squad FILE): questions per second and F1 over a SQuAD file, this engine beside Hugging Face's recipe for
it (windows padded to -s, in batches, torch) and beside NNCF's model.

Needs requirements-bench.txt.
"""

import contextlib
import copy
import logging
import os
import random
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from helpers import calibrator, cli
from helpers.backends import backend_module, load_engine, write_engine
from helpers.backends.base import BuildOptions
from helpers.batching import PaddedBatch
from helpers.benchmark import random_batch
from helpers.bert_config import BertConfig
from helpers.errors import missing_package
from helpers.files import check_writable, write_json
from helpers.random_model import RANDOM_SIZES, random_state

#: What int8 is calibrated on, ours and NNCF's alike: windows of --calibration, or, without it, random ones.
CALIBRATION_WINDOWS = 100
RANDOM_CALIBRATION_WINDOWS = 8

#: This engine's forms: what the tables call them → BuildOptions, as builder.py sets them for calibrated ranges.
FORMS = {"fp32": {}, "bf16": {"fp16": True}, "int8": {"fp16": True, "int8": True, "force_int8_multihead": True}}

#: Each peer runs this often in its turn, after one run that only wakes its threads.
RUNS_PER_TURN = 2


def parse(arguments):
    parser = cli.Parser("Time this project's CPU engine beside Hugging Face, ONNX Runtime and plain OpenVINO.")
    parser.add_argument(
        "--model", default="base", help="base or large (random weights), or a Hugging Face or config folder"
    )
    parser.add_argument("-b", "--batch-size", type=cli.positive_int, default=1, metavar="N", help="batch size")
    parser.add_argument(
        "-s",
        "--sequence-length",
        type=cli.positive_int,
        action="append",
        metavar="N",
        help="tokens; repeat for more (default: 128 and 384; with --squad: 384)",
    )
    parser.add_argument(
        "-i", "--iterations", type=cli.positive_int, default=30, metavar="N", help="timed runs of each peer"
    )
    parser.add_argument(
        "--peers",
        metavar="WORD",
        nargs="+",
        help="only peers whose name holds one of these words, such as openvino or bf16",
    )
    parser.add_argument("--squad", metavar="FILE", help="measure throughput on this SQuAD file instead")
    parser.add_argument(
        "--rounds", type=cli.positive_int, default=3, metavar="N", help="with --squad: how often each side runs"
    )
    parser.add_argument(
        "--questions", type=cli.positive_int, metavar="N", help="with --squad: only N of the questions, evenly spread"
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="SQuAD-format text to calibrate int8 on (default: random ids)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    if args.json:
        check_writable(args.json, "--json")
    torch_model, config = load_model(args.model)
    with tempfile.TemporaryDirectory(prefix="demobert-peers-") as folder:
        if args.squad:
            report = measure_throughput(args, torch_model, config, Path(folder))
        else:
            lengths = args.sequence_length or (128, 384)
            report = [measure_latency(args, torch_model, config, length, Path(folder)) for length in lengths]
    if args.json:
        write_json(
            args.json, {"model": args.model, "batch_size": args.batch_size, "machine": machine(), "report": report}
        )


def load_model(name: str):
    """(Hugging Face BertForQuestionAnswering in float32, BertConfig) of a checkpoint folder, or of random weights."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_package(error.name, "-r requirements-bench.txt", "scripts/benchmark_peers.py") from error
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    if name in RANDOM_SIZES:
        config = RANDOM_SIZES[name]
        sizes = {key: value for key, value in asdict(config).items() if key not in ("gelu", "do_lower_case")}
        peer_config = transformers.BertConfig(**sizes)
        state = {key: torch.from_numpy(value) for key, value in random_state(config).items()}
    else:
        from safetensors.torch import load_file

        config = BertConfig.from_folder(name)
        peer_config = transformers.BertConfig.from_pretrained(str(config_file(name)))
        state = {key: value.float() for key, value in load_file(Path(name) / "model.safetensors").items()}
    model = transformers.BertForQuestionAnswering(peer_config)
    model.load_state_dict(state, strict=False)
    return model.eval(), config


def config_file(folder) -> Path:
    return next(path for path in (Path(folder) / "bert_config.json", Path(folder) / "config.json") if path.exists())


class Builder:
    """This project's engines of the peers' own weights, and NNCF's of the same network."""

    def __init__(self, args, torch_model, config, folder: Path):
        from safetensors.torch import save_file

        from helpers.weights import load_weights

        self.config, self.folder = config, folder
        checkpoint = folder / "model.safetensors"
        save_file({key: value.contiguous() for key, value in torch_model.state_dict().items()}, checkpoint)
        self.weights = load_weights(config, pytorch=checkpoint)
        self.calibration = calibration_batches(args, config)

    def engine(self, form: str, length: int, batch_size: int, throughput: bool = False):
        """One of FORMS, built, written, loaded."""
        options = BuildOptions((batch_size,), (length,), **FORMS[form])
        weights = self.weights
        if options.int8:
            method = calibrator.METHODS[0]
            ranges = calibrator.calibrate(self.config, weights, "erf", False, self.calibration, method)
            weights = replace(weights, ranges={name: np.float32(amax) for name, amax in ranges.items()})
        built = backend_module("openvino").build(self.config, weights, "erf", options)
        path = self.folder / f"{form}_{length}.engine"
        write_engine(path, built, "openvino", options, self.config, True, None)
        return load_engine(path, options.layout, throughput)

    def nncf_engine(self, length: int, batch_size: int, throughput: bool = False):
        """NNCF's quantization (its preset for transformers, SmoothQuant among it) of the float network, rest in bf16."""
        import nncf
        import openvino

        from helpers.backends.openvino.engine import TYPES, OpenVINOEngine, half_precision
        from helpers.backends.openvino.layers import PaddedLayers
        from helpers.bert_network import build_bert

        layers = PaddedLayers(self.config, batch_size, length)
        build_bert(layers, self.config, self.weights, "erf")
        windows = nncf.Dataset([batch.inputs() for batch in self.calibration])
        model = nncf.quantize(
            layers.model(), windows, subset_size=len(self.calibration), model_type=nncf.ModelType.TRANSFORMER
        )
        core, hint = openvino.Core(), "THROUGHPUT" if throughput else "LATENCY"
        settings = {"INFERENCE_PRECISION_HINT": TYPES[half_precision(core)], "PERFORMANCE_HINT": hint}
        return OpenVINOEngine(self.engine("bf16", length, batch_size).card, core.compile_model(model, "CPU", settings))


def calibration_batches(args, config) -> list:
    if args.calibration is None:
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (RANDOM_CALIBRATION_WINDOWS, 1, 128), np.int32)
        return [PaddedBatch(row, np.zeros_like(row), np.ones_like(row)) for row in ids]
    from helpers.squad import read_squad
    from helpers.tokenization import BertTokenizer, load_vocabulary

    tokenizer = BertTokenizer(load_vocabulary(Path(args.model) / "vocab.txt"), do_lower_case=True)
    length = max(args.sequence_length or [384])
    return calibrator.calibration_batches(read_squad(args.calibration).examples, tokenizer, length, CALIBRATION_WINDOWS)


def measure_throughput(args, torch_model, config, folder: Path) -> dict:
    """Questions per second and F1 of both sides on one SQuAD file, in turn; printed as a table and returned."""
    import torch

    from helpers.data_processing import AnswerOptions
    from helpers.question_answering import QuestionAnswerer
    from helpers.squad import read_squad, token_f1
    from helpers.tokenization import BertTokenizer, load_vocabulary

    data = read_squad(args.squad)
    if args.questions:  # spread over the file, so that its lengths stay representative
        data = replace(data, examples=data.examples[:: max(len(data.examples) // args.questions, 1)][: args.questions])
    tokenizer = BertTokenizer(load_vocabulary(Path(args.model) / "vocab.txt"), do_lower_case=True)
    length = (args.sequence_length or [384])[0]
    builder = Builder(args, torch_model, config, folder)
    engines = {f"this engine, {form}": builder.engine(form, length, args.batch_size, throughput=True) for form in FORMS}
    engines["NNCF, int8"] = builder.nncf_engine(length, args.batch_size, throughput=True)
    answerers = {
        name: QuestionAnswerer(engine, tokenizer, AnswerOptions(batch_size=args.batch_size))
        for name, engine in engines.items()
    }
    sides = {name: partial(answer_with_engine, answerer, data) for name, answerer in answerers.items()}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = copy.deepcopy(torch_model).to(dtype)
        sides[f"Hugging Face, {precision}"] = partial(
            answer_with_torch, model, Path(args.model) / "vocab.txt", data, length
        )
    sides = {name: answer for name, answer in sides.items() if is_wanted(args.peers, name)}
    seconds, f1 = {name: [] for name in sides}, {}
    for round_ in range(args.rounds):
        for name, answer in sides.items():
            cli.note(f"Round {round_ + 1} of {args.rounds}: {name}")
            start = time.perf_counter()
            answers = answer()
            seconds[name].append(time.perf_counter() - start)
            scores = [max(token_f1(answers[e.question_id], gold) for gold in e.answers) for e in data.examples]
            f1[name] = 100 * float(np.mean(scores))
    return throughput_table(seconds, f1, len(data.examples))


def answer_with_engine(answerer, data) -> dict[str, str]:
    return {key: result.text for key, result in answerer.answer_squad(data).items()}


def answer_with_torch(model, vocab_file: Path, data, length: int, batch_size: int = 8) -> dict[str, str]:
    """Hugging Face's recipe with its defaults: windows padded to `length`, overlapping by 128, eight at a time.

    The recipe is that of transformers' documentation, "Question answering": for each window the 20 best starts with
    the 20 best ends, none over 30 tokens.
    """
    import torch
    import transformers

    tokenizer = transformers.BertTokenizerFast(str(vocab_file))
    encoded = tokenizer(
        [example.question for example in data.examples],
        [example.passage for example in data.examples],
        truncation="only_second",
        max_length=length,
        stride=128,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
        return_tensors="pt",
    )
    best = {}
    names = ("input_ids", "token_type_ids", "attention_mask")
    for first in range(0, len(encoded["input_ids"]), batch_size):
        rows = slice(first, first + batch_size)
        with torch.inference_mode():
            output = model(**{name: encoded[name][rows] for name in names})
        starts, ends = output.start_logits.float().numpy(), output.end_logits.float().numpy()
        for row in range(len(starts)):
            index = first + row
            example = data.examples[int(encoded["overflow_to_sample_mapping"][index])]
            in_passage = np.array([sequence == 1 for sequence in encoded.sequence_ids(index)])
            candidates = (
                (starts[row, start] + ends[row, end], start, end)
                for start in np.argsort(-starts[row])[:20]
                for end in np.argsort(-ends[row])[:20]
                if in_passage[start] and in_passage[end] and start <= end < start + 30
            )
            score, start, end = max(candidates, default=(-np.inf, 0, 0))
            if score > best.get(example.question_id, (-np.inf,))[0]:
                offsets = encoded["offset_mapping"][index]
                best[example.question_id] = (score, example.passage[int(offsets[start, 0]) : int(offsets[end, 1])])
    return {example.question_id: best.get(example.question_id, (0, ""))[1] for example in data.examples}


def throughput_table(seconds: dict, f1: dict, questions: int) -> dict:
    """Print and return questions per second, from the median over the rounds, and the ratios at equal precision."""
    rates = {name: questions / float(np.median(values)) for name, values in seconds.items()}
    print(f"\n{questions} questions, median of {len(next(iter(seconds.values())))} rounds, in turn\n")
    print(f"| {'engine':22} | questions/s | F1    | this engine is     |")
    print(f"| {'-' * 22} | ----------: | ----: | -----------------: |")
    rows = []
    for name, rate in rates.items():
        ours = rates.get(f"this engine, {name.split(', ')[1]}")
        ratio = ours / rate if ours and not name.startswith("this") else None
        print(f"| {name:22} | {rate:11.2f} | {f1[name]:5.2f} | {f'{ratio:.2f} × as fast' if ratio else '':>18} |")
        rows.append({"engine": name, "questions_per_second": rate, "f1": f1[name], "ratio": ratio})
    return {"questions": questions, "rows": rows}


def measure_latency(args, torch_model, config, length: int, folder: Path) -> dict:
    """Medians of every peer at one length, printed as a table and returned."""
    builder = Builder(args, torch_model, config, folder)
    peers, wanted = {}, partial(is_wanted, args.peers)
    engines = {f"this engine, {form}": builder.engine(form, max(length, 384), args.batch_size) for form in FORMS}
    batch = random_batch(engines["this engine, fp32"].card, args.batch_size, length, seed=length)
    if wanted("NNCF, int8"):
        cli.note("Preparing NNCF, int8")
        engines["NNCF, int8"] = builder.nncf_engine(max(length, 384), args.batch_size)
    for name, engine in engines.items():
        peers[name] = partial(lambda run: run(), engine._timed_run(batch))
    peers |= peer_runs(torch_model, batch, folder, wanted)
    latencies = in_turn(peers, args.iterations)
    return {"sequence_length": length, "rows": print_table(latencies, args.batch_size, length)}


def is_wanted(words: list | None, name: str) -> bool:
    """Whether `--peers` names this peer, upper or lower case."""
    return not words or any(word.lower() in name.lower() for word in words)


def in_turn(peers: dict, iterations: int) -> dict:
    """Latencies in ms: each peer a few runs at a time, round and round, so that the machine's moods hit all alike.

    The order is drawn anew for every round: what a peer leaves behind (spinning threads, a full cache) hits all alike.
    """
    from tqdm import tqdm

    latencies = {name: [] for name in peers}
    order, shuffle = list(peers.items()), random.Random(0).shuffle
    turns = -(-iterations // RUNS_PER_TURN)
    cli.note(f"Timing {len(peers)} engines in turn")
    for _ in tqdm(range(turns), unit="turn", leave=False, disable=None):
        shuffle(order)
        for name, run in order:
            time.sleep(0.02)  # lets the threads of the peer before stop spinning
            run()
            latencies[name] += [timed(run) for _ in range(RUNS_PER_TURN)]
    return latencies


def timed(run) -> float:
    """Wall-clock ms of one call."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def peer_runs(torch_model, batch, folder: Path, wanted) -> dict:
    """Name → a function that runs `batch` once, for every peer."""
    runs = {}
    onnx_path = export_onnx(torch_model, batch, folder)
    for name, prepare in {
        "Hugging Face eager, fp32": partial(prepare_torch, torch_model, batch, "float32", attention="eager"),
        "Hugging Face eager, bf16": partial(prepare_torch, torch_model, batch, "bfloat16", attention="eager"),
        "Hugging Face SDPA, fp32": partial(prepare_torch, torch_model, batch, "float32"),
        "Hugging Face SDPA, bf16": partial(prepare_torch, torch_model, batch, "bfloat16"),
        "torch.compile, fp32": partial(prepare_torch, torch_model, batch, "float32", compiled=True),
        "torch.compile, bf16": partial(prepare_torch, torch_model, batch, "bfloat16", compiled=True),
        "ONNX Runtime, fp32": partial(prepare_onnxruntime, onnx_path, batch, False),
        "ONNX Runtime, dynamic int8": partial(prepare_onnxruntime, onnx_path, batch, True),
        "OpenVINO on the export, fp32": partial(prepare_openvino, onnx_path, batch, "f32"),
        "OpenVINO on the export, bf16": partial(prepare_openvino, onnx_path, batch, "bf16"),
    }.items():
        if wanted(name):
            cli.note(f"Preparing {name}")
            runs[name] = prepare()
    return runs


def export_onnx(torch_model, batch, folder: Path) -> Path:
    """The Hugging Face model as ONNX by torch's exporter, with the shapes of `batch`."""
    import torch

    class StartAndEnd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = torch_model

        def forward(self, input_ids, attention_mask, token_type_ids):
            output = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            return output.start_logits, output.end_logits

    path = folder / f"export_{batch.batch_size}_{batch.sequence_length}.onnx"
    inputs = torch_inputs(batch)
    with torch.inference_mode(), silence():
        torch.onnx.export(
            StartAndEnd().eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            dynamo=True,
            verbose=False,
        )
    return path


def torch_inputs(batch) -> dict:
    import torch

    arrays = {"input_ids": batch.input_ids, "attention_mask": batch.input_mask, "token_type_ids": batch.segment_ids}
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def prepare_torch(torch_model, batch, dtype: str, compiled: bool = False, attention: str = "sdpa"):
    import torch

    model = copy.deepcopy(torch_model).to(getattr(torch, dtype))
    model.set_attn_implementation(attention)  # "sdpa" is transformers' default, "eager" its plain form
    forward = torch.compile(model) if compiled else model
    inputs = torch_inputs(batch)

    def run():
        with torch.inference_mode():
            forward(**inputs)

    run()  # compiles
    return run


def prepare_onnxruntime(onnx_path: Path, batch, int8: bool):
    import onnxruntime

    path = onnx_path
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = onnx_path.with_suffix(".int8.onnx")
        with silence():
            quantize_dynamic(onnx_path, path, weight_type=QuantType.QInt8, per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    inputs = {name: tensor.numpy() for name, tensor in torch_inputs(batch).items() if name in names}
    return lambda: session.run(None, inputs)


def prepare_openvino(onnx_path: Path, batch, precision: str):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(onnx_path), "CPU", settings)
    request = compiled.create_infer_request()
    for name, tensor in torch_inputs(batch).items():
        request.set_tensor(name, openvino.Tensor(tensor.numpy()))
    return request.infer


def silence():
    """Keeps the exporters' progress reports off the table."""
    logging.disable(logging.WARNING)
    return contextlib.redirect_stdout(open(os.devnull, "w"))


def print_table(latencies: dict, batch_size: int, length: int) -> list[dict]:
    """Print medians, and each peer's ratio to this engine at the peer's precision (above 1: the peer is slower)."""
    ours = {
        name.split(", ")[1]: float(np.median(values)) for name, values in latencies.items() if name.startswith("this")
    }
    print(
        f"\nbatch size {batch_size}, sequence length {length}; median of {len(next(iter(latencies.values())))} runs each, in turn\n"
    )
    print(f"| {'engine':30} | median ms | 5th percentile ms | this engine's median is |")
    print(f"| {'-' * 30} | --------: | ----------------: | ----------------------: |")
    rows = []
    for name, values in latencies.items():
        median, fifth = float(np.median(values)), float(np.percentile(values, 5))
        precision = name.split(", ")[1]
        base = ours["int8" if "int8" in precision else precision]
        ratio = base / median if base and not name.startswith("this") else None
        print(f"| {name:30} | {median:9.2f} | {fifth:17.2f} | {f'{ratio:.2f} ×' if ratio else '':>23} |")
        rows.append({"engine": name, "median_ms": median, "percentile_5_ms": fifth, "ratio": ratio})
    print(
        f"\nint8 takes {ours['int8'] / ours['bf16']:.2f} × this engine's bf16, {ours['int8'] / ours['fp32']:.2f} × its fp32"
    )
    return rows


def machine() -> dict:
    """What the figures were taken on."""
    import importlib.metadata
    import platform

    packages = ("openvino", "nncf", "torch", "transformers", "onnxruntime", "numpy")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }
