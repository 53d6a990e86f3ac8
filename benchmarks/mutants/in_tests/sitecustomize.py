"""Python imports this at its start, as the folder is on PYTHONPATH: what a test starts is measured
too.
"""

import os

if "COVERAGE_PROCESS_START" in os.environ:
    import coverage

    def tell_context() -> None:
        measured = coverage.Coverage.current()
        if measured is not None:
            measured.switch_context(os.environ.get("MUTANTS_CONTEXT", ""))

    coverage.process_startup()
    tell_context()
    os.register_at_fork(after_in_child=tell_context)
