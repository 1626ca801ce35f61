"""What the scripts of this folder have in common: a list of checks, run one after the other."""

import sys
import time
import traceback

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def refused(kind, call, param=None):
    """The error of this kind that `call` ends with, of the field `param` if one is given."""
    try:
        call()
    except kind as error:
        if param is not None:
            assert error.body["param"] == param, error.body
        return error
    raise AssertionError(f"nothing was refused; {kind.__name__} was expected")


def run_all(what):
    """Runs all checks; ends the program with the list of those that failed, if any."""
    failed = []
    for function in CHECKS:
        started = time.time()
        try:
            function()
            print(f"ok    {function.__name__} ({time.time() - started:.1f} s)", flush=True)
        except Exception:
            failed.append(function.__name__)
            print(f"FAILED {function.__name__}\n{traceback.format_exc()}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print(f"all {len(CHECKS)} checks passed {what}")
