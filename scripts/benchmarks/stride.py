"""What --doc-stride costs and gains in long documents: exact match, F1 and time, stride by stride.

Long documents are made of a SQuAD file: paragraphs that follow each other are joined by a blank line. inference.py
answers the same questions about the same documents at every stride, so that strides are compared question by question.
scripts/benchmark_stride.py runs it.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.errors import DemoBertError
from helpers.outputs import check_outputs, write_json
from helpers.squad import SquadData, exact_match, read_predictions, read_squad, token_f1

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "models" / "bundled" / "bert_mini_squad11"
SEQUENCE_LENGTH = 384  # of the engine that is built where none is named
TOKENS = 15000
STRIDES = (128, 192, 256, 320, 384)

#: Between the paragraphs of a document.
BLANK_LINE = "\n\n"

_TABLE = """\
| stride | windows a question | tokens computed a token | EM     | F1     | F1 less the first | seconds | questions/s |
| -----: | -----------------: | ----------------------: | -----: | -----: | ----------------: | ------: | ----------: |"""


def parse(arguments):
    parser = cli.Parser("Exact match, F1 and time of long documents, by --doc-stride, on one engine.")
    number = {"type": cli.positive_int, "metavar": "N"}
    parser.add_argument("--squad", required=True, metavar="FILE", help="SQuAD v1.1 file, whose paragraphs are joined")
    engine = f"padded engine (default: the bundled model's for windows of {SEQUENCE_LENGTH} tokens, built for this run)"
    parser.add_argument("-e", "--engine", metavar="FILE", help=engine)
    parser.add_argument(
        "--tokens", type=cli.non_negative_int, action="append", metavar="N",
        help=f"join paragraphs until a document has N tokens; 0: don't join; repeatable (default: {TOKENS})",
    )  # fmt: skip
    strides = f"repeatable; the others are held against the first (default: {' '.join(map(str, STRIDES))})"
    parser.add_argument("--doc-stride", **number, action="append", help=f"tokens from window to window; {strides}")
    parser.add_argument("--questions", **number, help="ask N of the questions only, evenly spread (default: all)")
    parser.add_argument("-b", "--batch-size", **number, default=8, help="how many windows run at once")
    parser.add_argument("-f", "--fp16", action="store_true", help="build the engine in half precision (default: fp32)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    cli.add_verbose(parser)
    return parser.parse_args(arguments)


def main(arguments) -> None:
    args = parse(arguments)
    check_outputs({"--json": args.json}, (args.squad, args.engine))
    data = answerable(read_squad(args.squad), args.squad)
    tables = []
    with tempfile.TemporaryDirectory(prefix="demobert-stride-") as folder:
        engine = args.engine or build_engine(args, Path(folder))
        windows = Windows.of(engine)
        for tokens in dict.fromkeys(args.tokens or [TOKENS]):
            tables.append(measure(args, engine, windows, joined(data, windows.lengths(data), tokens), Path(folder)))
    if args.json:
        facts = {"engine": str(args.engine or BUNDLED), "fp16": args.fp16, "batch_size": args.batch_size}
        write_json(args.json, facts | {"squad": str(args.squad), "tables": tables})


def build_engine(args, folder: Path) -> Path:
    from helpers.backends.base import BuildOptions
    from helpers.building import build_folder

    path = folder / "bundled.engine"
    options = BuildOptions((args.batch_size,), (SEQUENCE_LENGTH,), precision="fp16" if args.fp16 else "fp32")
    build_folder(BUNDLED, path, options)
    return path


def answerable(data: SquadData, path) -> SquadData:
    """`data`, if every question has a gold answer. Raises DemoBertError."""
    for example in data.examples:
        if not example.answers:
            raise DemoBertError(
                f"question {example.question_id!r} has no gold answer: give a SQuAD v1.1 file with answers: {path}"
            )
    return data


def joined(data: SquadData, lengths: dict[int, int], tokens: int) -> SquadData:
    """The questions about documents of at least `tokens` tokens, of paragraphs that follow each other.

    `lengths` has the tokens of every paragraph. What is left over at the end goes to the last document. The answers
    are where they were in their paragraph.
    """
    passages = {example.paragraph: example.passage for example in data.examples}
    documents, size = [], tokens
    for paragraph in passages:
        if size >= tokens:
            documents.append([])
            size = 0
        documents[-1].append(paragraph)
        size += lengths[paragraph]
    if size < tokens and len(documents) > 1:
        rest = documents.pop()
        documents[-1] += rest
    places, texts = {}, []
    for number, document in enumerate(documents):
        start = 0
        for paragraph in document:
            places[paragraph] = number, start
            start += len(passages[paragraph]) + len(BLANK_LINE)
        texts.append(BLANK_LINE.join(passages[paragraph] for paragraph in document))

    def moved(example):
        number, start = places[example.paragraph]
        starts = tuple(None if at is None else start + at for at in example.answer_starts)
        return replace(example, passage=texts[number], paragraph=number, answer_starts=starts)

    return replace(data, examples=[moved(example) for example in data.examples])


def spread(data: SquadData, count: int | None) -> SquadData:
    """`count` of the questions, evenly spread; all where that is None or more than there are."""
    total = len(data.examples)
    count = min(count or total, total)
    return replace(data, examples=[data.examples[number * total // count] for number in range(count)])


def write_squad(path: Path, data: SquadData) -> None:
    """A SQuAD v1.1 file, one article of one paragraph for each document."""
    articles = []
    for number, examples in groupby(data.examples, key=lambda example: example.paragraph):
        examples = list(examples)
        questions = [
            {
                "id": example.question_id,
                "question": example.question,
                "answers": [
                    {"text": text} if start is None else {"text": text, "answer_start": start}
                    for text, start in zip(example.answers, example.answer_starts)
                ],
            }
            for example in examples
        ]
        paragraph = {"context": examples[0].passage, "qas": questions}
        articles.append({"title": f"Document {number + 1}", "paragraphs": [paragraph]})
    write_json(path, {"version": "1.1", "data": articles})


@dataclass(frozen=True)
class Windows:
    """The windows that inference.py cuts for an engine: their tokenizer, their length in tokens."""

    tokenizer: object
    length: int

    @classmethod
    def of(cls, engine) -> "Windows":
        from helpers.answerer import engine_tokenizer
        from helpers.engine_card import EngineCard

        card = EngineCard.read(EngineCard.path_for(engine))
        return cls(engine_tokenizer(engine, card), card.max_sequence_length)

    def lengths(self, data: SquadData) -> dict[int, int]:
        """How many tokens each paragraph has."""
        passages = {example.paragraph: example.passage for example in data.examples}
        return dict(zip(passages, map(len, self.tokenizer.encode_batch(list(passages.values()), "passage"))))

    def count(self, data: SquadData, lengths: dict[int, int], stride: int) -> tuple[int, float]:
        """How many windows all questions have; how many tokens are computed for each token of text."""
        from helpers.data_processing import window_spans

        questions = self.tokenizer.encode_batch([example.question for example in data.examples], "question")
        windows = computed = 0
        for example, question in zip(data.examples, questions):
            beside = min(len(question), AnswerOptions.max_query_length) + self.tokenizer.template.size
            spans = window_spans(lengths[example.paragraph], self.length - beside, stride)
            windows += len(spans)
            computed += sum(length + beside for _, length in spans)
        return windows, computed / sum(lengths[example.paragraph] for example in data.examples)


def measure(args, engine, windows: Windows, documents: SquadData, folder: Path) -> dict:
    """Answer the questions at every stride; print and return a table."""
    questions, lengths = spread(documents, args.questions), windows.lengths(documents)
    facts = {"documents": len(lengths), "tokens": sum(lengths.values()), "questions": len(questions.examples)}
    mean = facts["tokens"] / facts["documents"]
    print(
        f"\n{facts['questions']} questions, {facts['documents']} documents of {mean:.0f} tokens on average\n\n{_TABLE}"
    )
    write_squad(folder / "documents.json", questions)
    rows, first = [], None
    for stride in dict.fromkeys(args.doc_stride or STRIDES):
        cli.note(f"Documents of {mean:.0f} tokens, --doc-stride {stride}")
        predictions, seconds = answers(args, engine, folder, stride)
        exact, f1 = scores(questions, predictions)
        first = first or f1
        count, computed = windows.count(questions, lengths, stride)
        rows.append({"stride": stride, "windows": count, "tokens_computed_per_token": computed})
        rows[-1] |= {"exact_match": 100 * statistics.fmean(exact), "f1": 100 * statistics.fmean(f1)}
        rows[-1] |= dict(zip(("f1_less_first", "standard_error"), difference(f1, first))) | {"seconds": seconds}
        print_row(rows[-1], len(f1))
    return facts | {"rows": rows}


def answers(args, engine, folder: Path, stride: int) -> tuple[dict[str, str], float]:
    """inference.py's predictions, and the seconds that it took from its start to its end. Raises DemoBertError."""
    output = folder / "predictions.json"
    files = ["-e", engine, "-sq", folder / "documents.json", "-o", output]
    flags = [*files, "--doc-stride", stride, "-b", args.batch_size]
    command = [sys.executable, ROOT / "inference.py", *flags]
    start = time.perf_counter()
    code = subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
    if code:
        raise DemoBertError(f"inference.py --doc-stride {stride} ended with exit code {code}: what it says is above")
    return read_predictions(output), time.perf_counter() - start


def scores(data: SquadData, predictions: dict[str, str]) -> tuple[list[float], list[float]]:
    """Exact match and F1 of each question, 0 to 1."""
    exact, f1 = [], []
    for example in data.examples:
        prediction = predictions[example.question_id]
        exact.append(max(exact_match(prediction, gold) for gold in example.answers))
        f1.append(max(token_f1(prediction, gold) for gold in example.answers))
    return exact, f1


def difference(values: list[float], first: list[float]) -> tuple[float, float]:
    """The mean of value less first, question by question, and its standard error, in percent."""
    differences = [100 * (one - other) for one, other in zip(values, first)]
    if len(differences) < 2:
        return statistics.fmean(differences), 0.0
    return statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def print_row(row: dict, questions: int) -> None:
    less = f"{row['f1_less_first']:.2f} ± {row['standard_error']:.2f}"
    print(
        f"| {row['stride']:6} | {row['windows'] / questions:18.1f} | {row['tokens_computed_per_token']:23.2f} "
        f"| {row['exact_match']:6.2f} | {row['f1']:6.2f} | {less:>17} | {row['seconds']:7.1f} "
        f"| {questions / row['seconds']:11.2f} |",
        flush=True,
    )
