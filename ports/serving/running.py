"""A running vLLM server: its own counters before and after prompts are sent, and the times of what it streams."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from ports.errors import InputError, reason
from ports.evaluate.acceptance import Counters, in_json
from ports.evaluate.intervals import Estimate, Ratio, from_json, ratio
from ports.generate.address import Address
from ports.progress import through
from ports.serving import COUNTERS

GENERATED = "vllm:generation_tokens"
LINE = re.compile(r"(?P<name>[\w:]+?)(?:_total)?(?:\{(?P<labels>.*)\})? (?P<value>[\d.eE+-]+)")
POSITION = re.compile(r'position="(\d+)"')
WARM_UP_TOKENS = 8
SETTLED, PATIENCE = 5.0, 600.0
"""Seconds that the counters may lag behind what was streamed, and that a server has for an answer."""


def counters_of(turn: dict[str, Any], whose: str = "vLLM") -> Counters:
    """What vLLM counted of a turn; a length is 1 and the sum of the rates.

    Raises:
        InputError: what was accepted in all is not the sum of what was by position.
    """
    places = tuple(int(each) for each in turn.get("accepted_per_position", ()))
    if (accepted := int(turn.get("accepted", sum(places)))) != sum(places):
        raise InputError(whose, "accepted tokens", accepted, f"{sum(places)}, those of all positions")
    return Counters(int(turn.get("drafts", 0)), places)


def intervals_of(turn: dict[str, Any], plain: dict[str, Any] | None, counted: Counters) -> dict[str, Any]:
    """Of speed, of how many times plain decoding it is, and of acceptance, over prompts.

    Values are those of the whole turn and of its counters. How far prompts spread is read off what each answer grew by,
    step by step (the last step may be cut), and the seconds that each took.
    """
    speed = _speed(turn)
    found: dict[str, Any] = {"tokens_per_second": speed.estimate().times(_whole(turn) / speed.value)}
    if plain is not None:
        times = speed.over(_speed(plain))
        found["times_plain"] = times.times(_whole(turn) / _whole(plain) / times.value)
    size, steps = len(counted.accepted_per_position), [list(pairwise(each)) for each in turn["grown"]]
    accepted = [[after - before - 1 for before, after in each] for each in steps]
    drafts = list(map(len, accepted))
    length = ratio(list(map(sum, accepted)), drafts).plus(1)
    found["acceptance_length"] = length.plus(counted.acceptance_length - length.value)
    found["rate_per_position"] = []
    for place, value in enumerate(counted.rate_per_position):
        rate = ratio([sum(each > place for each in row) for row in accepted], drafts)
        found["rate_per_position"].append(rate.plus(value - rate.value))
    return found if size else found | {"acceptance_length": Estimate(1.0, 1.0, 1.0)}


def _speed(turn: dict[str, Any]) -> Ratio:
    return Ratio(list(map(len, turn["tokens"])), turn["took"])


def _whole(turn: dict[str, Any]) -> float:
    return float(sum(map(len, turn["tokens"])) / turn["seconds"])


def measure_servers(
    servers: Sequence[Server], asked: Sequence[list[int]], length: int, batch_sizes: Sequence[int], ignore_eos: bool
) -> list[dict[str, Any]]:
    """A row for every number of requests in flight and server; the second is the one without a draft.

    Raises:
        InputError: see :class:`Server`.
    """
    rows = []
    for server in servers:
        server.turn([min(asked, key=len)] * batch_sizes[-1], WARM_UP_TOKENS, batch_sizes[-1], True)
    for together in through(batch_sizes, "requests in flight, turns"):
        turns = [server.turn(asked, length, together, ignore_eos) for server in servers]
        for server, turn in zip(servers, turns):
            counted = counters_of(turn, server.address.url)
            row = {
                "server": server.address.url,
                "batch_size": together,
                "tokens": sum(map(len, turn["tokens"])),
                "seconds": turn["seconds"],
                "first_token_seconds": statistics.median(turn["first_token_seconds"]),
                "between_tokens_seconds": turn["between_tokens_seconds"],
                "drafts": counted.drafts,
                "accepted_per_position": list(counted.accepted_per_position),
                "intervals": in_json(intervals_of(turn, turns[1] if turns[1:] else None, counted)),
            }
            rows.append(row)
    return rows


def print_servers(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Each row."""
    table = Table()
    columns = ("in flight", "tok/s", "times plain", "first token ms", "between ms", "length", "rates")
    for name in ("server", *columns):
        table.add_column(name, justify="left" if name == "server" else "right", overflow="fold")
    for row in rows:
        told = row["intervals"]
        rates = " ".join(f"{from_json(rate):.3f}" for rate in told["rate_per_position"])
        times = f"{from_json(told['times_plain']):.2f}" if "times_plain" in told else ""
        waits = (f"{1000 * row[f'{name}_seconds']:.1f}" for name in ("first_token", "between_tokens"))
        speed, accepted = f"{from_json(told['tokens_per_second']):.1f}", f"{from_json(told['acceptance_length']):.3f}"
        table.add_row(row["server"], f"{row['batch_size']}", speed, times, *waits, accepted, rates)
    console.print(table)


@dataclass
class Server:
    """A vLLM server; ``name`` and ``root`` of the model that it serves.

    Raises:
        InputError: none that answers, or no vLLM.
    """

    address: Address
    name: str = field(init=False)
    root: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            (model, *_) = json.loads(self._get("/v1/models"))["data"]
            self.name, self.root = str(model["id"]), str(model.get("root") or model["id"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise self.address.refused("/v1/models", reason(error), "a server with a model") from error
        if GENERATED not in self.read():
            raise self.address.refused("/metrics", "no counters of vLLM", "a vLLM server that counts")

    def read(self) -> dict[str, Any]:
        """Counters of speculative decoding under short names, and the tokens generated; all engines together."""
        found: dict[str, Any] = {}
        for line in self._get("/metrics").splitlines():
            if (match := LINE.fullmatch(line)) is None or match["name"] not in (*COUNTERS, GENERATED):
                continue
            name, value = COUNTERS.get(match["name"], GENERATED), int(float(match["value"]))
            if position := POSITION.search(match["labels"] or ""):
                places = found.setdefault(name, {})
                places[int(position[1])] = places.get(int(position[1]), 0) + value
            else:
                found[name] = found.get(name, 0) + value
        return found

    def turn(self, prompts: Sequence[list[int]], length: int, together: int, ignore_eos: bool) -> dict[str, Any]:
        """What :func:`ports.serving.engine.serve` gives of one batch size, and the seconds between tokens.

        Raises:
            InputError: an answer fails, or the server generated for others meanwhile.
        """
        asked = {"model": self.name, "max_tokens": length, "temperature": 0.0, "ignore_eos": ignore_eos}
        before, start = self.read(), time.perf_counter()
        rows = asyncio.run(self._ask_all([{**asked, "prompt": ids} for ids in prompts], together))
        seconds, tokens = time.perf_counter() - start, [each["tokens"] for each in rows]
        after, counted = self._settled(before, sum(map(len, tokens))), {}
        for name in (each for each in COUNTERS.values() if each in after):
            new, old = after[name], before.get(name)
            counted[name] = (
                [new[place] - (old or {}).get(place, 0) for place in sorted(new)]
                if isinstance(new, dict)
                else new - (old or 0)
            )
        between = [(each["took"] - each["first_token_seconds"]) / max(1, len(each["tokens"]) - 1) for each in rows]
        columns = {name: [each[name] for each in rows] for name in rows[0]}
        between_tokens = {"between_tokens_seconds": statistics.median(between)}
        return {"batch_size": together, "seconds": seconds, **columns, **counted, **between_tokens}

    def _settled(self, before: dict[str, Any], tokens: int) -> dict[str, Any]:
        """The counters once they count all that was streamed."""
        end = time.monotonic() + SETTLED
        while (made := (after := self.read())[GENERATED] - before[GENERATED]) < tokens and time.monotonic() < end:
            time.sleep(0.05)
        if made != tokens:
            raise self.address.refused(
                "/metrics", f"{made:,} tokens generated", f"the {tokens:,} asked for, by nobody else"
            )
        return after

    async def _ask_all(self, asked: Sequence[dict[str, Any]], together: int) -> list[dict[str, Any]]:
        gate, limits = asyncio.Semaphore(together), httpx.Limits(max_connections=together)
        timeout, headers = httpx.Timeout(PATIENCE, connect=30), self.address.headers
        async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits) as client:

            async def ask(content: dict[str, Any]) -> dict[str, Any]:
                async with gate:
                    return await self._answer(client, content)

            return list(await asyncio.gather(*map(ask, asked)))

    async def _answer(self, client: httpx.AsyncClient, content: dict[str, Any]) -> dict[str, Any]:
        """Token ids as they are streamed: how many after every event, and when the first and the last came."""
        start, times, grown = time.perf_counter(), [], []
        tokens: list[int] = []
        asked = {**content, "stream": True, "return_token_ids": True}
        try:
            async with client.stream("POST", f"{self.address.url}/v1/completions", json=asked) as reply:
                if reply.status_code != 200:
                    raise self.address.status_refused("/v1/completions", reply.status_code, "an answer")
                async for line in reply.aiter_lines():
                    if line.startswith("data: {"):
                        (choice,) = json.loads(line[6:])["choices"]
                        if fresh := choice["token_ids"]:
                            tokens += fresh
                            grown.append(len(tokens))
                            times.append(time.perf_counter() - start)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise self.address.refused("/v1/completions", reason(error), "streamed answers with token_ids") from error
        if not tokens:
            raise self.address.refused("/v1/completions", "an answer without token_ids", "vLLM 0.11 or newer")
        return {"tokens": tokens, "grown": grown, "first_token_seconds": times[0], "took": times[-1]}

    def _get(self, path: str) -> str:
        try:
            reply = httpx.get(self.address.url + path, headers=self.address.headers, timeout=30)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.address.refused(path, reason(error), "a vLLM server") from error
        if reply.status_code != 200:
            raise self.address.status_refused(path, reply.status_code, "a vLLM server")
        return reply.text
