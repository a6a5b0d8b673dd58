"""Damaged copies of files: flipped bits, cuts, insertions, pickles, absurd headers, JSON with a wrong value in it.

``MUTANTS=2000 pytest -k mutant`` for more of them than the default.
"""

import copy
import json
import os
import pickle
import random
import signal
from contextlib import contextmanager
from pathlib import Path

from parity.errors import InputError
from ports.errors import InputError as PortInputError

COUNT = int(os.environ.get("MUTANTS", "7"))
SECONDS, STANDSTILL = 20, 300
"""Of processor time, and of any: a reader that takes longer hangs. A machine that stands still for a while does not."""

VALUES = (
    *(
        None,
        True,
        -1,
        0,
        1,
        3,
        10**9,
        2**63,
        1e308,
        0.5,
        "",
        "x",
        "1",
        "../..",
        "\0",
        "a" * 5000,
        [],
        [1],
        {},
        {"a": 1},
    ),
    *([[]], float("nan"), float("inf"), "auto", "/nowhere"),
)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def mutate(content, draw, mark):
    """One damaged copy."""
    return draw.choice(MUTATIONS)(bytearray(content), draw, mark)


def _flip(content, draw, mark):
    for _ in range(draw.choice((1, 1, 1, 3, 30))):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def _flip_early(content, draw, mark):
    """Where headers are."""
    if content:
        content[draw.randrange(min(len(content), 400))] = draw.randrange(256)
    return bytes(content)


def _cut(content, draw, mark):
    return bytes(content[: draw.randrange(len(content) + 1)])


def _insert(content, draw, mark):
    place = draw.randrange(len(content) + 1)
    content[place:place] = draw.randbytes(draw.choice((1, 8, 100)))
    return bytes(content)


def _blank(content, draw, mark):
    start = draw.randrange(len(content) + 1)
    end = min(len(content), start + draw.choice((8, 64, 4096)))
    content[start:end] = bytes(end - start)
    return bytes(content)


def _pickle(content, draw, mark):
    return pickle.dumps({"input_ids": Bomb(mark)}, protocol=draw.choice((0, 2, 4)))


def _huge_header(content, draw, mark):
    size = draw.choice((2**63 - 1, 2**64 - 1, 2**40, 100_000_001, len(content)))
    return size.to_bytes(8, "little") + bytes(content[8:])


def _noise(content, draw, mark):
    return draw.randbytes(draw.choice((0, 1, 100, 3000)))


def _deep(content, draw, mark):
    return b"[" * 100_000


MUTATIONS = (_flip, _flip, _flip_early, _flip_early, _cut, _insert, _blank, _pickle, _huge_header, _noise, _deep)


def mutate_json(content, draw):
    """The same document with one value replaced, one key renamed or one left out."""
    value = copy.deepcopy(json.loads(content))
    holder, key = draw.choice(list(_places(value)))
    if draw.random() < 0.2 and isinstance(holder, dict):
        kept = holder.pop(key)
        if draw.random() < 0.5:
            holder[f"{key}x"] = kept
    else:
        holder[key] = draw.choice(VALUES)
    return json.dumps(value).encode()


def _places(value):
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)) and value[key]:
            yield from _places(value[key])


def mutate_words(words, draw):
    """A command line with one word damaged, replaced, left out, doubled or moved."""
    place, other = draw.randrange(len(words)), draw.randrange(len(words))
    word, before, after = words[place], words[:place], words[place + 1 :]
    damaged = mutate(word.encode(), draw, Path()).decode(errors="replace").replace("\0", "?")[:5000]
    return draw.choice(
        (
            [*before, damaged, *after],
            [*before, str(draw.choice(VALUES)), *after],
            [*before, *after],
            [*before, word, word, *after],
            [*before, words[other], *after],
            [*before, f"{word}={draw.choice(VALUES)}", *after],
        )
    )


class TooLongError(BaseException):
    """No Exception: a reader that turns every exception into bad input must not turn this one into it."""


class Tally:
    """What became of the mutants of one boundary."""

    def __init__(self):
        self.refused = self.accepted = 0

    @contextmanager
    def one(self, what):
        """The block reads a mutant: an InputError or nothing at all may come out of it, in time."""
        try:
            with in_time(SECONDS):
                yield
            self.accepted += 1
        except (InputError, PortInputError):
            self.refused += 1
        except (Exception, TooLongError) as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:300]}") from error


@contextmanager
def in_time(busy):
    """Raises TooLongError in a block that takes more than so many seconds of processor time, or hangs."""

    def too_long(number, frame):
        raise TooLongError(f"more than {busy} s of work" if number == signal.SIGPROF else f"more than {STANDSTILL} s")

    before = {number: signal.signal(number, too_long) for number in (signal.SIGPROF, signal.SIGALRM)}
    _set_timers(busy, STANDSTILL)
    try:
        yield
    finally:
        _set_timers(0, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _set_timers(busy, any_time):
    signal.setitimer(signal.ITIMER_PROF, busy)
    signal.setitimer(signal.ITIMER_REAL, any_time)


def try_all(
    file,
    read,
    tmp_path,
    count=COUNT,
    prepare=None,
):
    """Put ``count`` mutants in the place of ``file``, one after the other, and let ``read`` read each.

    ``prepare`` runs before every read, with the mutant in place.
    """
    content, tally, mark = file.read_bytes(), Tally(), tmp_path / "executed"
    is_json = file.suffix == ".json"
    try:
        for number in range(count):
            draw = random.Random(f"{file.name}{number}")
            mutant = mutate_json(content, draw) if is_json and number % 2 else mutate(content, draw, mark)
            file.write_bytes(mutant)
            if prepare:
                prepare()
            with tally.one(f"{file.name} mutant {number}"):
                read()
            assert not mark.exists(), f"{file.name} mutant {number} was executed"
    finally:
        file.write_bytes(content)
    print(f"{file.name}: {tally.refused} refused, {tally.accepted} accepted")
    return tally
