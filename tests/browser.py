"""Debian's chromium for the tests of pages: fixtures that a conftest takes from here."""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("SILC_BENCH_CHROMIUM") or shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """``show(html, at="#...", width=1280, **context)`` -> the page, once it is ready.

    At the end of the test: nothing was asked of any network, and nothing stands in the console.
    """
    contexts, faults = [], []

    def shown(html, at="", width=1280, height=900, **more):
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        context.set_default_timeout(300_000)  # only a page that hangs takes so long, at any load
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))

        def asked(request):
            if not request.url.startswith(("data:", path.as_uri())):
                faults.append(f"request: {request.url}")

        page.on("request", asked)
        page.goto(path.as_uri() + at)
        assert faults == []
        page.wait_for_selector("main[data-ready]")
        return page

    yield shown
    for context in contexts:
        context.close()
    assert faults == []


def until(page, condition, arg=None):
    """Wait for a condition of the page: an expression, or a function of ``arg``, of JavaScript.

    Playwright's own ``wait_for_function`` evaluates a text at each frame but the first, which the
    policy of our pages forbids.
    """
    function = condition if "=>" in condition else f"() => {condition}"
    page.evaluate(
        f"""arg => new Promise(done => {{
          const look = () => (({function})(arg) ? done() : requestAnimationFrame(look));
          look();
        }})""",
        arg,
    )


def serious_faults(page):
    """What axe-core finds that keeps someone from reading the page."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    found = axe.Axe().run(page).response["violations"]
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
