"""A server with the OpenAI API as what makes a verifier speak; nothing that it says is believed unseen.

It must serve the verifier, by its own name or the one that the user gives, and answer every prompt once: in text of a
possible length. What a busy server refuses for now (429, 5xx, a broken connection) is asked again with growing pauses;
everything else that is not as it should be ends the command.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx

from ports.errors import InputError, reason
from ports.files import is_text
from ports.generate.address import Address
from ports.generate.replies import ENDS, MAX_CONCURRENCY, Drawn, Prompt, Reply, Tell

TIMES = 8
"""Requests for one answer at most, of which all but the last were refused for now."""

PAUSES = (0.25, 16.0)
"""Seconds before the second request, and at most; each pause is about twice the one before it."""

PATIENCE = 600.0
"""Seconds that a server has for one answer."""

CLOSING = 2.0
"""Seconds that requests have to end in, once nobody waits for them."""

LONGEST_REPLY = 8 << 20
"""Bytes of a reply at most: an answer of 8,192 tokens takes a hundredth of it."""

SLACK = 1.25
"""A text may split into a few more tokens than it was said in: more than so many times the limit is no such answer."""

BUSY = frozenset({408, 425, 429})
"""Statuses that a server gives for now, besides 5xx."""

BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)
"""A connection that ends before the reply does."""


class _BusyError(Exception):
    """Refused for now; ``pause`` is how long the server asks to be left alone, in seconds."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


@dataclass
class ServerEngine:
    """An OpenAI-compatible server that serves the verifier, by its ``/v1/completions``.

    Args:
        model: the verifier.
        tokenizer: counts the tokens of an answer.
        address: where it is.
        served: the server's name for the verifier where it has another, as vLLM's ``--served-model-name``.
    """

    model: str
    tokenizer: Any
    address: Address
    served: str | None = None

    name, independent = "server", True

    @cached_property
    def _model(self) -> str:
        """The verifier by the name that the server has for it.

        Raises:
            InputError: it does not answer, or serves other models only.
        """

        async def ask() -> Any:
            async with self._client() as client:
                return await self._ask(client, "models", None)

        given, wanted = asyncio.run(ask()), self.served or self.model
        try:
            names = {str(each["id"]): (each["id"], each.get("root")) for each in given["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise self._refused("models", ascii(given), "a server with a model") from error
        found = next((name for name, own in names.items() if wanted in own), None)
        if found is None:
            expected = f"{wanted}, or the server's name for it in --served-model"
            raise self._refused("models", ", ".join(map(ascii, names)) or "no model", expected)
        return found

    def answer(self, prompts: Sequence[Prompt], drawn: Drawn, tell: Tell) -> Iterator[tuple[int, Reply]]:
        """See :data:`~ports.generate.engines.Engine`; answers come as they end.

        Raises:
            InputError: one cannot be had; those that are whole by then come before.
        """
        model, loop, client = self._model, asyncio.new_event_loop(), self._client()
        gate = asyncio.Semaphore(MAX_CONCURRENCY)

        async def complete(number: int, prompt: Prompt) -> tuple[int, Reply]:
            asked = {"model": model, "prompt": prompt.ids, "seed": prompt.seed, **drawn}
            async with gate:
                return number, self._reply(await self._ask(client, "completions", asked), int(drawn["max_tokens"]))

        tasks = [loop.create_task(complete(number, prompt)) for number, prompt in enumerate(prompts)]
        try:
            for count, reply in enumerate(_as_they_end(loop, tasks), 1):
                tell(count, count)
                yield reply
        finally:  # Ctrl-C ends up here too, at once
            _close(loop, [*tasks, loop.create_task(client.aclose())])

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=MAX_CONCURRENCY)
        timeout = httpx.Timeout(PATIENCE, connect=30)
        return httpx.AsyncClient(headers=self.address.headers, timeout=timeout, limits=limits)

    async def _ask(self, client: httpx.AsyncClient, what: str, content: dict[str, Any] | None) -> Any:
        """The JSON of a reply, asked for again as long as the server is only busy.

        Raises:
            InputError: no such reply.
        """
        for times in range(1, TIMES + 1):
            try:
                return await asyncio.wait_for(self._ask_once(client, what, content), PATIENCE)
            except (_BusyError, *BROKEN) as error:
                unreachable = isinstance(error, httpx.ConnectError) and content is None
                if times == TIMES or unreachable:
                    expected = "an OpenAI-compatible server that serves the verifier"
                    tried = f" ({times} times)" if times > 1 else ""
                    raise self._refused(what, f"{reason(error)}{tried}", expected) from error
                pause = min(PAUSES[1], PAUSES[0] * 2 ** (times - 1)) * random.uniform(0.75, 1.25)
                await asyncio.sleep(max(pause, getattr(error, "pause", 0.0)))
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError, asyncio.TimeoutError) as error:
                if isinstance(error, InputError):
                    raise
                expected = "an OpenAI-compatible server that serves the verifier"
                raise self._refused(what, reason(error), expected) from error
        raise AssertionError("the last time raises")

    async def _ask_once(self, client: httpx.AsyncClient, what: str, content: dict[str, Any] | None) -> Any:
        url, method = f"{self.address.url}/v1/{what}", "GET" if content is None else "POST"
        async with client.stream(method, url, json=content) as reply:
            if reply.status_code in BUSY or reply.status_code >= 500:
                raise _BusyError(f"status {reply.status_code}", _asked_pause(reply.headers.get("retry-after", "")))
            if reply.status_code != 200:
                raise self.address.status_refused(f"/v1/{what}", reply.status_code, "a reply to what was asked")
            body = bytearray()
            async for part in reply.aiter_bytes():
                body += part
                if len(body) > LONGEST_REPLY:
                    raise self._refused(what, f"more than {LONGEST_REPLY:,} bytes", "a reply of an answer's size")
        return json.loads(bytes(body).decode("utf-8"))

    def _reply(self, given: Any, longest: int) -> Reply:
        """One answer, if it is one.

        Raises:
            InputError: another number of choices, no text, or more tokens than were asked for.
        """
        choices = given.get("choices") if isinstance(given, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self._refused("completions", ascii(given), "choices with text, one of them")
        text, end = choices[0].get("text"), str(choices[0].get("finish_reason"))
        if end not in ENDS:
            return Reply("", end, "")
        if not isinstance(text, str) or not is_text(text):
            raise self._refused("completions", f"text {text!a}", "choices with text")
        counted = self._counted(given.get("usage"), text)
        if counted > longest * SLACK:
            raise self._refused("completions", f"{counted:,} tokens", f"at most the {longest:,} asked for")
        return Reply(text, end, text)

    def _counted(self, usage: Any, text: str) -> int:
        """Tokens of an answer: as the server says, or as many as its text has, whichever are more."""
        said = usage.get("completion_tokens") if isinstance(usage, dict) else None
        own = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return max(own, said) if type(said) is int else own

    def _refused(self, what: str, found: str, expected: str) -> InputError:
        return self.address.refused(f"/v1/{what}", found, expected)


def _asked_pause(header: str) -> float:
    """Seconds of a ``Retry-After``, as far as we wait at all; a date is none."""
    return min(float(header), PAUSES[1]) if header.isdecimal() else 0.0


def _close(loop: asyncio.AbstractEventLoop, tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel all but the last, which closes what they use; what does not end for it is left.

    Ctrl-C that comes between two steps of the loop may take the waking of a task with it, which then never ends.
    """
    loop.set_exception_handler(lambda loop, context: None)  # tells of what is left
    for task in tasks[:-1]:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks, timeout=CLOSING))
    loop.close()


def _as_they_end(
    loop: asyncio.AbstractEventLoop, tasks: Sequence[asyncio.Task[tuple[int, Reply]]]
) -> Iterator[tuple[int, Reply]]:
    """What tasks give, as they end; the error of one comes after all that have ended by then."""
    waiting: set[asyncio.Task[tuple[int, Reply]]] = set(tasks)
    while waiting:
        done, waiting = loop.run_until_complete(asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))
        failed = [task for task in done if task.exception() is not None]
        for task in done:
            if task not in failed:
                yield task.result()
        if failed:
            raise failed[0].exception() or AssertionError
