"""The `peer` command: one file a command, nothing heavy before it is needed."""

import sys

import typer

from cli import (
    apply,
    bench,
    check,
    doctor,
    export,
    generate,
    invite,
    join,
    leave,
    simulate,
    start,
    status,
    up,
)
from cli.console import ExitCode, complain

EPILOG = "\n\n".join(["Exit codes:", *(f"{code.value}  {code.meaning}" for code in ExitCode)])

app = typer.Typer(
    name="peer",
    help="Train one model together with other machines: no server, replicas identical to the bit.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("start")(start.start)
app.command("join")(join.join)
app.command("invite")(invite.invite)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("leave")(leave.leave)
app.command("generate")(generate.generate)
app.command("check")(check.check)
app.command("export")(export.export)
app.command("apply")(apply.apply)
app.command("simulate")(simulate.simulate)
app.add_typer(bench.bench, name="bench")


def main() -> None:
    """Errors that a person can mend are two lines on stderr and an exit code, never a traceback."""
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED.value)
    except Exception as error:
        code = complain(error)
        if code is None:
            raise
        sys.exit(code)


if __name__ == "__main__":
    main()
