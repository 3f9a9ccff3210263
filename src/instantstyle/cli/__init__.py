"""The command line: one file a command, nothing heavy imported before a command runs.

Results go to stdout, progress, warnings and errors to stderr.  Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted;
`again` has two more.
"""

import os
from typing import NoReturn

import typer

from instantstyle.cli.adapter import adapter
from instantstyle.cli.again import again
from instantstyle.cli.batch import BATCH_EXAMPLES, batch
from instantstyle.cli.doctor import doctor
from instantstyle.cli.evaluate import compare, evaluate, probe
from instantstyle.cli.generate import generate_command
from instantstyle.cli.help import RequestCommand
from instantstyle.cli.invert import invert
from instantstyle.cli.output import print_note, robust_streams
from instantstyle.cli.serve import SERVE_EXAMPLES, serve
from instantstyle.cli.similarity import similarity
from instantstyle.cli.style import style
from instantstyle.cli.train import app as train
from instantstyle.errors import InputError, InstantStyleError

# Plain help and plain errors: rich's take a tenth of a second more, and cut long names in the middle.
app = typer.Typer(
    name="instantstyle",
    help="A picture in the style of a picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("generate", cls=RequestCommand)(generate_command)
app.command()(again)
app.command(epilog=BATCH_EXAMPLES)(batch)
app.command()(invert)
app.command()(doctor)
app.command()(compare)
app.command()(evaluate)
app.command()(probe)
app.command()(similarity)
app.command(epilog=SERVE_EXAMPLES)(serve)
app.add_typer(style)
app.add_typer(adapter)
app.add_typer(train)


def main() -> None:
    """Run the command line; whatever goes wrong is a sentence on stderr and an exit code."""
    with robust_streams():
        try:
            app(prog_name="instantstyle")
        except InstantStyleError as error:
            _fail(str(error), 2 if isinstance(error, InputError) else 1)
        except KeyboardInterrupt:
            _fail("interrupted; no unfinished file is left", 130)
        except SystemExit as done:
            if done.code == 130:
                _fail("interrupted; no unfinished file is left", 130)
            raise
        except Exception as error:
            if os.environ.get("INSTANTSTYLE_TRACEBACK"):
                raise
            if _is_out_of_memory(error):
                _fail(
                    "there is not enough memory for this: ask for fewer or smaller pictures (--count, --size), for "
                    "half precision (--dtype bfloat16), or for another device (--device cpu)",
                    1,
                )
            kind, text = type(error).__name__, " ".join(str(error).split())[:500]
            _fail(f"{kind}: {text} (this is a mistake of ours; INSTANTSTYLE_TRACEBACK=1 shows where)", 1)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine has too little memory, by names: torch's type would need torch."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _fail(sentence: str, code: int) -> NoReturn:
    print_note(f"error: {sentence}")
    raise SystemExit(code)
