"""inference.py's flags and its three ways to ask: once, at the prompt, for a whole SQuAD file.

Shared with inference_varseqlen.py and inference_c.py, which differ only in the engine they load.
"""

import sys
import time
from collections.abc import Callable, Iterable

from tqdm import tqdm

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer, QuestionResult
from helpers.backends import load_engine
from helpers.backends.base import Engine
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from helpers.files import check_outputs, read_text, write_json
from helpers.squad import read_squad
from helpers.tokenization import Tokenizer, load_tokenizer
from helpers.tokenizer_files import named_tokenizer

RULE = "-" * 24

DEFAULT_PREDICTIONS = "./predictions.json"

#: A question that takes longer gets a progress bar.
_SECONDS_WITHOUT_A_BAR = 1.0


#: What -b does, by the layout that a script serves; None: either.
_BATCH_SIZE_HELP = {
    "padded": "how many windows run at once (default: 1)",
    "packed": "run at once as many windows as have the tokens of N full ones (default: the engine's largest)",
    None: "how many windows run at once (default: 1, of a packed engine its largest)",
}


def add_inference_arguments(parser: cli.Parser, layout: str | None) -> None:
    """All flags but --verbose of inference.py ("padded"), inference_varseqlen.py ("packed"), inference_c.py (None)."""
    cli.add_engine(parser)
    words, file = {"nargs": "+", "metavar": "WORD"}, {"metavar": "FILE"}
    threshold = {"type": cli.finite_float, "default": 0.0, "metavar": "X"}
    for *flags, value, text in (
        ("-p", "--passage", words, "passage to look for answers in"),
        ("-pf", "--passage-file", file, "file with the passage, UTF-8"),
        ("-q", "--question", words, "question about the passage"),
        ("-qf", "--question-file", file, "file with questions, UTF-8, one a line"),
        ("-sq", "--squad-json", file, "SQuAD v1.1 or v2.0 file: answer all its questions"),
        ("-o", "--output-prediction-file", file, f"answers to the SQuAD file (default: {DEFAULT_PREDICTIONS})"),
        ("--n-best-output", file, "the n best answers to each question of the SQuAD file"),
        ("--null-odds-output", file, "SQuAD v2.0: score of no answer less that of the best, per question"),
        ("--null-score-diff-threshold", threshold, "SQuAD v2.0: answer nothing where the null odds are above this"),
        (
            "-v",
            "--vocab-file",
            file,
            "vocab.txt, tokenizer.json or the model's folder (default: the engine's tokenizer)",
        ),
    ):
        parser.add_argument(*flags, **value, help=text)
    for *flags, default, text in (
        ("-s", "--sequence-length", None, "tokens in a window (default: the engine's longest)"),
        ("-b", "--batch-size", None, _BATCH_SIZE_HELP[layout]),
        ("--max-query-length", AnswerOptions.max_query_length, "tokens of the question that are read"),
        ("--max-answer-length", AnswerOptions.max_answer_length, "longest answer in tokens"),
        ("--n-best-size", AnswerOptions.n_best_size, "answers to weigh against each other"),
        ("--doc-stride", AnswerOptions.doc_stride, "tokens from one window of a long passage to the next"),
    ):
        parser.add_argument(*flags, type=cli.positive_int, default=default, metavar="N", help=text)
    parser.add_argument(
        "--cased", action="store_true", help="keep upper case and accents (default: as the tokenizer says)"
    )


def check_inference_arguments(args) -> None:
    """Say what contradicts or can't be written before the engine is loaded. Raises DemoBertError."""
    if args.passage and args.passage_file:
        raise UsageError("give the passage with -p or with -pf, not both")
    if args.question and args.question_file:
        raise UsageError("give the question with -q or with -qf, not both")
    if args.squad_json:
        if args.passage or args.passage_file or args.question or args.question_file:
            raise UsageError("a SQuAD file (-sq) has its own passages and questions: leave out -p, -pf, -q and -qf")
        args.output_prediction_file = args.output_prediction_file or DEFAULT_PREDICTIONS
        card = EngineCard.path_for(args.engine)
        engine = args.engine, card, EngineCard.tokenizer_path_for(args.engine)
        check_outputs(_squad_outputs(args), (args.squad_json, *engine, args.vocab_file))
    elif any(_squad_outputs(args).values()):
        raise UsageError(f"{', '.join(_squad_outputs(args))} need a SQuAD file (-sq)")


def _squad_outputs(args) -> dict:
    return {
        "--output-prediction-file": args.output_prediction_file,
        "--n-best-output": args.n_best_output,
        "--null-odds-output": args.null_odds_output,
    }


def answer(args, layout: str | None, load: Callable[..., Engine] = load_engine) -> None:
    """Load the engine, which must have `layout`, and answer what `args` ask for. Raises DemoBertError.

    `load` takes the arguments of `helpers.backends.load_engine`.
    """
    check_inference_arguments(args)
    engine = load(args.engine, layout, throughput=args.squad_json is not None, say=cli.note)
    answerer = question_answerer(args, engine)
    if args.verbose:
        cli.note(engine.describe())
    if args.squad_json:
        answer_squad_file(args, answerer)
    else:
        answer_questions(args, answerer)


def question_answerer(args, engine: Engine) -> Answerer:
    """The engine with its vocabulary and the options of `args`. Raises DemoBertError where they do not fit."""
    card = engine.card
    tokenizer = engine_tokenizer(args.engine, card, args.vocab_file, args.cased)
    return Answerer(
        engine,
        tokenizer,
        AnswerOptions(
            sequence_length=args.sequence_length,
            batch_size=args.batch_size or (1 if card.layout == "padded" else card.max_batch_size),
            max_query_length=args.max_query_length,
            doc_stride=args.doc_stride,
            max_answer_length=args.max_answer_length,
            n_best_size=args.n_best_size,
            null_score_diff_threshold=args.null_score_diff_threshold,
        ),
    )


def engine_tokenizer(engine_path, card: EngineCard, vocab_file=None, cased: bool = False) -> Tokenizer:
    """The tokenizer beside the engine, or that of `vocab_file`, which must be the same. Raises DemoBertError."""
    beside = EngineCard.tokenizer_path_for(engine_path)
    if vocab_file is not None:
        tokenizer = named_tokenizer(vocab_file, card, beside, cli.note)
    elif beside.exists():
        tokenizer = load_tokenizer(beside, card.tokenizer_sha256)
    else:
        raise DemoBertError(
            f"the engine's tokenizer is not at {beside}: copy it there, or name the model's with -v/--vocab-file"
        )
    return tokenizer.with_case(False) if cased else tokenizer


def note_on_control_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Say, once, if a text has the spelling of a token that sets texts apart."""
    if found := next((token for text in texts for token in tokenizer.control_tokens if token in text), None):
        cli.note(f"Note: {cli.one_line(found)} in a text is read as text, not as the model's own token")


def answer_questions(args, answerer: Answerer) -> None:
    """Answer the questions given, or, where none is, those typed in until `exit`, `quit` or the end of input."""
    passage = _given_text(args.passage, args.passage_file, "passage")
    if passage is None:
        passage = _prompt("Passage: ")
        if passage is None:
            return
    question = _given_text(args.question, args.question_file, "question")
    if question is not None:
        lines = question.splitlines() if args.question_file else [question]
        for line in [line for line in lines if line.strip()] or [""]:
            _answer(answerer, passage, line)
        return
    while (question := _prompt("Question (exit or quit ends): ")) is not None:
        if question.strip().lower() in ("exit", "quit"):
            return
        try:
            _answer(answerer, passage, question)
        except DemoBertError as error:  # a question that can't be answered does not end the conversation
            cli.note(cli.one_line(error))


def answer_squad_file(args, answerer: Answerer) -> None:
    """Answer a whole SQuAD file and write the predictions, each file whole or not at all. Raises DemoBertError."""
    data = read_squad(args.squad_json)
    passages = {example.paragraph: example.passage for example in data.examples}
    note_on_control_tokens(answerer.tokenizer, [*passages.values(), *(example.question for example in data.examples)])
    start = time.perf_counter()
    with tqdm(total=len(data.examples), unit="question", disable=None) as progress:

        def on_progress(done: int, total: int) -> None:
            progress.update(done - progress.n)

        results = answerer.answer_squad(data, on_progress)
    seconds = time.perf_counter() - start
    write_json(args.output_prediction_file, {key: result.text for key, result in results.items()})
    if args.n_best_output:
        write_json(args.n_best_output, {key: _n_best(result) for key, result in results.items()})
    if args.null_odds_output and not data.version_2:
        cli.note("Note: --null-odds-output has no effect: this is a SQuAD v1.1 file, every question has an answer")
    elif args.null_odds_output:
        write_json(args.null_odds_output, {key: result.null_odds for key, result in results.items()})
    print(
        f"Answered {len(results)} questions in {seconds:.1f} s, {len(results) / seconds:.1f} questions per second: "
        f"{args.output_prediction_file}"
    )


def _answer(answerer: Answerer, passage: str, question: str) -> None:
    note_on_control_tokens(answerer.tokenizer, (passage, question))
    with tqdm(unit="window", leave=False, delay=_SECONDS_WITHOUT_A_BAR, disable=None) as progress:

        def on_progress(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        reply = answerer.ask(passage, question, on_progress)
    print(f"Passage: {cli.one_line(passage)}")
    print(f"Question: {cli.one_line(question)}")
    print(RULE)
    print(f"Running inference in {reply.windows / reply.seconds:.3f} Sentences/Sec")
    print(RULE)
    best = reply.answers[0]
    print(f"Answer: '{cli.one_line(best.text)}'")
    print(f"With probability: {best.probability * 100:.3f}", flush=True)


def _n_best(result: QuestionResult) -> list[dict]:
    return [
        {
            "text": answer.text,
            "probability": answer.probability,
            "start_char": answer.start_char,
            "end_char": answer.end_char,
            "start_logit": answer.start_logit,
            "end_logit": answer.end_logit,
        }
        for answer in result.n_best
    ]


def _given_text(words, path, what: str) -> str | None:
    if path is not None:
        return read_text(path, f"{what} file")
    return None if words is None else " ".join(words)


def _prompt(text: str) -> str | None:
    try:
        return input(text if sys.stdin.isatty() else "")  # what is piped in needs no prompt among the answers
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise DemoBertError("what was typed is not UTF-8 text") from error
