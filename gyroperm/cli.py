"""The ``gyroperm`` command."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gyroperm import __version__
from gyroperm.folder_options import add_folder_options, check_file_options, flag, natural, positive
from gyroperm.pattern import Pattern

OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130

_EXIT_CODES = """\
exit codes:
  0    done
  1    failed while working (the disk was full, for example); files that were there stay
  2    usage or bad input: an unknown option, pattern or method, a value out of range, an
       unsound checkpoint, an output that cannot be written; nothing was written
  130  interrupted by Ctrl-C; after the first one everything is still written, from the best
       found so far, after a second one nothing is
"""


@dataclasses.dataclass(frozen=True)
class _PatternKind:
    """A pattern on the command line: its constructor, and which option is which argument."""

    make: Callable[..., Pattern]
    arguments: dict[str, str]
    summary: str

    def build(self, name: str, given: dict[str, Any]) -> Pattern:
        """The pattern of the options given; ValueError names one that does not belong, or lacks."""
        takes = ", ".join(map(flag, self.arguments))
        foreign = [flag(option) for option in given if option not in self.arguments]
        if foreign:
            raise ValueError(
                f"--pattern {name} does not take {', '.join(foreign)}; it takes {takes}"
            )
        parameters = inspect.signature(self.make).parameters
        missing = [
            flag(option)
            for option, argument in self.arguments.items()
            if option not in given and parameters[argument].default is inspect.Parameter.empty
        ]
        if missing:
            raise ValueError(f"--pattern {name} needs {', '.join(missing)}; it takes {takes}")
        return self.make(**{self.arguments[option]: value for option, value in given.items()})


_TWO_LEVELS = {"n": "n", "m": "m", "vec_ratio": "vec_ratio", "vec_size": "vec_size"}

PATTERNS = {
    "nm": _PatternKind(
        Pattern.nm,
        {"n": "n", "m": "m"},
        "N:M, such as 2:4: each row keeps N of every M columns of one column order",
    ),
    "hinm": _PatternKind(
        Pattern.hinm,
        _TWO_LEVELS,
        "HiNM: each tile keeps as many column vectors, any of them, then N:M inside",
    ),
    "vnm": _PatternKind(
        Pattern.vnm,
        {"n": "N", "vec_size": "V", "window": "M"},
        "V:N:M (VENOM): 4 vectors of every window of one column order, then N of the 4",
    ),
    "vector-nm": _PatternKind(
        Pattern.vector_nm,
        {"n": "N", "window": "M", "vec_size": "L"},
        "vector N:M (NM-SpMM): N whole vectors of every window, dense inside",
    ),
    "tvw": _PatternKind(
        Pattern.tvw,
        {**_TWO_LEVELS, "row_ratio": "row_ratio"},
        "TVW: as hinm, but only the sum of vectors over all tiles is fixed",
    ),
}

_PATTERN_OPTIONS = ("n", "m", "vec_ratio", "vec_size", "window", "row_ratio")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code: 0 done, 1 failed while working, 2 usage or bad input, 130 interrupted.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as done:
        # argparse has printed help, the version, or what is wrong.
        return done.code if isinstance(done.code, int) else USAGE
    try:
        code: int = arguments.run(arguments)
        # What is left to write fails here, where it is understood, not at exit.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output has closed it; nothing may be flushed there at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except KeyboardInterrupt:
        print("gyroperm: aborted; no checkpoint was written", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError) as error:
        # An extra that is not installed says which.
        return _fail(error, USAGE)


def _fail(error: Exception, code: int) -> int:
    print(f"gyroperm: error: {error}", file=sys.stderr)
    return code


def _solve(arguments: argparse.Namespace) -> int:
    from gyroperm.pruning import planned, prune

    if arguments.checkpoint.is_dir() or arguments.checkpoint.name.endswith(".index.json"):
        from gyroperm.checkpoints.command import prune_folder

        return prune_folder(arguments, _pattern(arguments), _rules(arguments))
    check_file_options(arguments)
    with planned(_job(arguments)) as plan:
        for note in plan.notes:
            print(f"gyroperm: note: {note}", file=sys.stderr)
        try:
            report = prune(plan)
            if not arguments.quiet:
                print(report.text())
                print(f"\nwrote {plan.job.target}", flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            # What could be told from the input was checked before.
            return _fail(error, FAILURE)
    if arguments.lossless:
        _tell_losses(report)
    return INTERRUPTED if report.interrupted else OK


def _tell_losses(report: Any) -> None:
    """Name the layers that do not fit the pattern, and say why."""
    for result in report.layers:
        figures = result.figures
        if figures["lost"]:
            why = f"no order is lossless: {figures['infeasible']}"
            if not figures["infeasible"]:
                why = f"the best order found would lose {figures['lost']} nonzeros"
            print(f"gyroperm: note: {result.layer.name} does not fit; {why}", file=sys.stderr)


def _rules(arguments: argparse.Namespace) -> Any:
    from gyroperm.selection import Rules

    return Rules(
        include=tuple(arguments.include),
        exclude=tuple(arguments.exclude),
        transposed=tuple(arguments.transposed),
        embeddings=arguments.include_embeddings,
    )


def _job(arguments: argparse.Namespace) -> Any:
    from gyroperm.pruning import Job

    return Job(
        source=arguments.checkpoint,
        target=arguments.output,
        pattern=_pattern(arguments),
        method=arguments.method,
        options=dict(arguments.option),
        seed=arguments.seed,
        threads=arguments.threads,
        time_limit=arguments.time_limit,
        bound=arguments.bound,
        rounds=arguments.rounds,
        rules=_rules(arguments),
        json=arguments.json,
        solutions=arguments.solutions,
        progress=not arguments.quiet and sys.stderr.isatty(),
        lossless=arguments.lossless,
    )


def _pattern(arguments: argparse.Namespace) -> Pattern:
    name = arguments.pattern
    if name not in PATTERNS:
        raise ValueError(f"unknown pattern {name!r}; known are {', '.join(PATTERNS)}")
    values = {option: getattr(arguments, option) for option in _PATTERN_OPTIONS}
    given = {option: value for option, value in values.items() if value is not None}
    return PATTERNS[name].build(name, given)


def _show(arguments: argparse.Namespace) -> int:
    from gyroperm.report import solution_json
    from gyroperm.solution import Solution

    solution = Solution.load(arguments.solution)
    print(solution_json(solution) if arguments.json else solution.summary())
    return OK


def _methods(arguments: argparse.Namespace) -> int:
    from gyroperm.solvers import registry

    for name in registry.names():
        method = registry.get(name)
        alias = f"today {method.name}: " if method.name != name else ""
        print(f"{name:10}{alias}{method.summary}")
        options = "" if alias else _options_line(method.options)
        if options:
            print(f"{'':10}options: {options}")
    return OK


def _options_line(options: type) -> str:
    """The options of a method with their defaults."""
    defaults = options()
    return ", ".join(
        f"{field.name}={json.dumps(getattr(defaults, field.name), default=str)}"
        for field in dataclasses.fields(options)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gyroperm",
        description="Permutation search for hardware sparsity: the order of rows and columns, "
        "and the mask, that keep the most of what matters.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gyroperm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_solve(commands)
    _add_report(commands)
    _add_show(commands)
    _add_methods(commands)
    return parser


def _report(arguments: argparse.Namespace) -> int:
    from gyroperm.checkpoints.report import open_report, report_text, write_report

    folder = open_report(arguments.run_folder)
    print(report_text(write_report(folder)))
    print(f"\nwrote {folder.report.with_suffix('.html')} and .json")
    return OK


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="make the report of a run anew",
        description="Put together the report of a checkpoint that was pruned into a folder, also "
        "of a run that is not finished: gyroperm/report.html, one page that needs no network, and "
        "gyroperm/report.json.",
    )
    parser.add_argument("run_folder", type=Path, metavar="run", help="the output folder of the run")
    parser.set_defaults(run=_report)


def _add_show(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="say what a stored solution is and how good",
        description="Print a solution's pattern, what it retains against unstructured pruning, "
        "its efficacy, bound and gap, and how it was found.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "solution",
        type=Path,
        help="an .npz file of Solution.save, or of `gyroperm solve --solutions`",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=_show)


def _add_methods(commands: Any) -> None:
    parser = commands.add_parser(
        "methods",
        help="list the search methods and their options",
        description="List the search methods, one line each, and their options with defaults.",
    )
    parser.set_defaults(run=_methods)


def _add_solve(commands: Any) -> None:
    kinds = "\n".join(
        f"  {name:10} {kind.summary}\n{'':13}options: {', '.join(map(flag, kind.arguments))}"
        for name, kind in PATTERNS.items()
    )
    parser = commands.add_parser(
        "solve",
        help="prune the layers of a safetensors checkpoint, a file or a folder of shards",
        description="Search, for every layer of a checkpoint, the order of rows (output channels) "
        "and columns (input\nchannels) under which the pattern's best mask keeps the most "
        "saliency |W|, and write the checkpoint\nwith everything outside the masks set to zero. "
        "Rows and columns stay in their original order in\nthe file. Weights may be F64, F32, "
        "F16 or BF16; what is kept stays bit for bit, and so does every\ntensor that is not "
        "pruned. A folder of shards, or its index, is pruned into another folder with the same "
        "shards, in\nbounded memory; interrupted, it goes on when the same command is given again.",
        epilog=f"patterns:\n{kinds}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="the safetensors file to prune, a folder of shards, or the index of one",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="the safetensors file to write, whole or not at all; may be the input. For a folder "
        "of shards, another folder",
    )
    _add_pattern_options(parser.add_argument_group("pattern"))
    _add_search_options(parser.add_argument_group("search"))
    _add_selection_options(parser.add_argument_group("which tensors"))
    _add_output_options(parser.add_argument_group("output"))
    add_folder_options(parser.add_argument_group("folders of shards"))
    parser.set_defaults(run=_solve)


def _add_pattern_options(group: Any) -> None:
    group.add_argument(
        "--pattern",
        default="nm",
        metavar="NAME",
        help=f"which masks the hardware can run: {', '.join(PATTERNS)} (see below; default nm)",
    )
    group.add_argument(
        "--n",
        type=int,
        help="weights each row keeps of every group (default 2); for vector-nm, vectors each "
        "tile keeps of every window",
    )
    group.add_argument("--m", type=int, help="columns of a group (default 4)")
    group.add_argument(
        "--vec-ratio",
        type=float,
        metavar="FRACTION",
        help="column vectors that are pruned as a whole, as a fraction in [0, 1) (default 0.5); "
        "with 2:4 inside, 0.5 makes 75 %% sparsity",
    )
    group.add_argument(
        "--vec-size",
        type=int,
        metavar="V",
        help="rows of a tile, which are the length of a column vector (default 64 for hinm and "
        "tvw)",
    )
    group.add_argument(
        "--window",
        type=int,
        metavar="COLUMNS",
        help="consecutive columns, in the layer's one order, of which every tile keeps the same "
        "number of vectors: the M of V:N:M and of vector N:M",
    )
    group.add_argument(
        "--row-ratio",
        type=float,
        metavar="FRACTION",
        help="rows (output channels) that are pruned as a whole before, as a fraction in [0, 1) "
        "(tvw; default 0)",
    )


def _add_search_options(group: Any) -> None:
    group.add_argument(
        "--lossless",
        action="store_true",
        help="for weights that are sparse already: search for an order in which the pattern keeps "
        "every nonzero; no weight is changed, layers without such an order are named, --solutions "
        "saves the orders, and saliencies in reports count nonzeros",
    )
    group.add_argument(
        "--method",
        default="auto",
        metavar="NAME",
        help="how to search; `gyroperm methods` lists them (default auto)",
    )
    group.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the method, the value as JSON or else as text; may be repeated",
    )
    group.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="stop each layer's search after so long, compilation excluded; annealing is "
        "stretched to fill it; by default it runs until the method has converged",
    )
    group.add_argument(
        "--rounds",
        type=natural,
        metavar="INTEGER",
        help="stop each layer's search after so many rounds, which give the same on any machine",
    )
    group.add_argument(
        "--bound",
        type=float,
        nargs="?",
        const=True,
        default=False,
        metavar="SECONDS",
        help="after each layer's search, prove how much any permutation can keep: for so many "
        "seconds, or without a number until the linear relaxation is solved, 60 seconds at most; "
        "for plain N:M; without this option the bound is that of unstructured pruning",
    )
    group.add_argument(
        "--seed",
        type=natural,
        default=0,
        metavar="INTEGER",
        help="of every random choice; without a time limit the same seed gives the same file, "
        "for any number of threads (default 0)",
    )
    group.add_argument(
        "--threads",
        type=positive,
        metavar="INTEGER",
        help="worker threads (default: all processors this process may use)",
    )


def _add_selection_options(group: Any) -> None:
    from gyroperm.selection import EMBEDDINGS, HEADS

    regex: dict[str, Any] = {
        "type": _regex,
        "action": "append",
        "default": [],
        "metavar": "RE",
    }
    group.add_argument(
        "--include",
        **regex,
        help="prune only tensors in whose name this regular expression is found; may be repeated "
        "(any of them suffices)",
    )
    group.add_argument(
        "--exclude",
        **regex,
        help="leave out tensors in whose name this regular expression is found; may be repeated",
    )
    group.add_argument(
        "--include-embeddings",
        action="store_true",
        help="prune embeddings and output heads too, which are left out otherwise; they are "
        f"recognised by their names: embeddings {EMBEDDINGS} and heads {HEADS}".replace("%", "%%"),
    )
    group.add_argument(
        "--transposed",
        **regex,
        help="tensors stored as (in, out), such as GPT-2's Conv1D, 'c_(attn|proj|fc)'; they are "
        "solved as (out, in) and written as they were stored; may be repeated",
    )


def _add_output_options(group: Any) -> None:
    group.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write a report: each layer's retained, identity and unstructured saliency, their "
        "ratio and efficacy, bound, gap and seconds, the totals, and what was skipped",
    )
    group.add_argument(
        "--solutions",
        type=Path,
        metavar="FOLDER",
        help="save each layer's orders and mask there as soon as they are found, as NAME.npz "
        "(for `gyroperm show` and Solution.load); made if it is missing",
    )
    group.add_argument(
        "--quiet", action="store_true", help="no progress bar and no table; errors and notes only"
    )


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    for parse in (json.loads, float):
        with contextlib.suppress(ValueError):
            return key, parse(value)
    return key, value
