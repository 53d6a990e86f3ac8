"""No test touches the user's own folders, and every machine draws the same examples.

What tests write is removed after them.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A file has one name: silc_bench.trainer.loop, never trainer.loop, though the checkout may be on
# the path.
sys.modules["tasks"] = sys.modules["trainer"] = None

sys.path.insert(0, str(Path(__file__).parent))  # browser, forked, pretended_gpu, refusals

import refusals  # noqa: E402
from browser import browser, show  # noqa: E402, F401

BROAD_FILE = re.compile(r"^pytestmark = .*\bbroad\b", re.MULTILINE)

# Before any test module is imported; each process of xdist has its own, and it goes with the
# process that made it.
_CACHE = tempfile.TemporaryDirectory(prefix="silc-bench-test-cache-")
os.environ["SILC_BENCH_CACHE"] = _CACHE.name

# Nor does a test see the defaults of who runs it: no file above the checkout, no variable. Sets and
# models of a test are so small that a process for them takes longer to start than to work.
OF_TESTS = {"CACHE", "TEST_DATA", "REWRITE_MESSAGES", "CHROMIUM"}
for _name in [name for name in os.environ if name.startswith("SILC_BENCH_")]:
    if _name.removeprefix("SILC_BENCH_") not in OF_TESTS:
        del os.environ[_name]
os.environ["SILC_BENCH_CONFIG"] = "off"

# A suite that is red on one clone and green on the next teaches everyone to look away; `make fuzz`
# draws new examples.
#
# Nor does an example have a time limit: the first one may wait for an import, or for the machine.
NO_LIMIT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("same everywhere", derandomize=True, database=None, **NO_LIMIT)
settings.register_profile("fuzz", derandomize=False, **NO_LIMIT)
settings.load_profile("same everywhere")


def pytest_ignore_collect(collection_path, config):
    """A broad file is not even imported where its tests are left out.

    It brings foreign libraries, and importing them takes longer than many tests.
    """
    is_left_out = "not broad" in config.option.markexpr and collection_path.suffix == ".py"
    if is_left_out and BROAD_FILE.search(collection_path.read_text(encoding="utf-8")):
        return True
    return None


@pytest.fixture(scope="session", autouse=True)
def places_in_messages(tmp_path_factory):
    refusals.places[str(tmp_path_factory.getbasetemp())] = "TMP"
    refusals.places[str(Path(__file__).parents[1])] = "REPOSITORY"
    refusals.places[_CACHE.name] = "CACHE"


def pytest_sessionfinish(session):
    """`make messages`: each process hands its sentences to the first one, which writes them."""
    if "SILC_BENCH_REWRITE_MESSAGES" not in os.environ:
        return
    output = getattr(session.config, "workeroutput", None)
    if output is None:
        refusals.write(refusals.rewritten)
    else:
        output["sentences"] = refusals.rewritten


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_testnodedown(node):
    refusals.rewritten.update(getattr(node, "workeroutput", {}).get("sentences", {}))


def pytest_unconfigure():
    _CACHE.cleanup()
