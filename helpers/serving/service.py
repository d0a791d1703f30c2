"""Requests with passages and questions → replies, some requests at once: what is served, whatever serves it."""

import dataclasses
import itertools
from dataclasses import dataclass
from functools import partial

from helpers.answerer import Answerer, Reply
from helpers.errors import DemoBertError, one_line

#: Characters of what is said of a request: some of it comes from the request.
_REFUSAL_LENGTH = 300


@dataclass(frozen=True)
class Request:
    """What one client asks at once: passages and questions as UTF-8, as many of one as of the other.

    `parameters` may have `top_k`: how many of each question's best answers it wants to see.
    """

    passages: list[bytes]
    questions: list[bytes]
    parameters: dict


class Service:
    """An `Answerer` that takes requests. It may be used from several threads, as the `Answerer` may.

    `max_passage` is the length of the longest passage that is answered, in characters: what is longer would keep the
    engine from the others' questions.
    """

    def __init__(self, answerer: Answerer, max_passage: int):
        self._answerer, self._max_passage = answerer, max_passage

    def answer(self, requests: list[Request]) -> list[list[Reply] | DemoBertError]:
        """For each request its questions' replies, in order, or a DemoBertError where one of them can't be answered.

        The questions of all requests go through the engine together. Raises DemoBertError where the engine fails.
        """
        read = [self._read(request) for request in requests]
        rows = [row for one in read if not isinstance(one, DemoBertError) for row in one.rows]
        chunks = self._answerer.ask_in_chunks(rows, top_k=None)
        replies = itertools.chain.from_iterable(chunks)
        return [one if isinstance(one, DemoBertError) else one.of(replies) for one in read]

    def _read(self, request: Request) -> "_Read | DemoBertError":
        try:
            top_k = self._top_k(request.parameters)
            if len(request.passages) != len(request.questions):
                raise DemoBertError(f"{len(request.passages)} passages and {len(request.questions)} questions")
            pairs = list(zip(request.passages, request.questions))
            return _Read([_each(index, pairs, self._row) for index in range(len(pairs))], top_k)
        except DemoBertError as error:
            return _refusal(error)

    def _row(self, pair: tuple[bytes, bytes]) -> tuple[str, str]:
        passage, question = (_text(data, what) for data, what in zip(pair, ("passage", "question")))
        if len(passage) > self._max_passage:
            raise DemoBertError(f"the passage has {len(passage)} characters: at most {self._max_passage} are answered")
        return passage, question

    def _top_k(self, parameters: dict) -> int:
        """Raises DemoBertError for what is no number of answers, and for parameters that would change nothing."""
        if unknown := sorted(set(parameters) - {"top_k"}):
            raise DemoBertError(f"there is no parameter {unknown[0]!r}, only top_k")
        top_k, most = parameters.get("top_k", 1), self._answerer.options.n_best_size
        if type(top_k) is not int or not 1 <= top_k <= most:
            raise DemoBertError(f"top_k must be a whole number from 1 to {most}, not {top_k!r}")
        return top_k


@dataclass(frozen=True)
class _Read:
    """A request whose texts could be read: its rows, as `Answerer` takes them."""

    rows: list[tuple[str, str]]
    top_k: int

    def of(self, replies) -> list[Reply] | DemoBertError:
        """Takes as many replies as there are rows."""
        own = list(itertools.islice(replies, len(self.rows)))
        try:
            return [_each(index, own, partial(_shortened, top_k=self.top_k)) for index in range(len(own))]
        except DemoBertError as error:
            return _refusal(error)


def _each(index: int, items: list, step):
    """`step` of one of a request's items; a DemoBertError says which it was, where there are several."""
    try:
        return step(items[index])
    except DemoBertError as error:
        where = f"question {index + 1} of {len(items)}: " if len(items) > 1 else ""
        raise DemoBertError(f"{where}{error}") from None


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DemoBertError(f"the {what} is not UTF-8 text (byte {error.start})") from None


def _shortened(reply: Reply | DemoBertError, top_k: int) -> Reply:
    if isinstance(reply, DemoBertError):
        raise reply
    return dataclasses.replace(reply, n_best=reply.n_best[:top_k])


def _refusal(error: DemoBertError) -> DemoBertError:
    """What the client is told: one line of bounded length."""
    return DemoBertError(one_line(error, _REFUSAL_LENGTH))
