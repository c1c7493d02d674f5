"""Makes the pictures of the documentation: starts AIRI, gives it work, and photographs its dashboard.

``scripts/screenshot`` runs it. Everything in the pictures happened: real calls through the gateway to the simulated
engine, real policies, a real run that waits for a person.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import httpx
import yaml
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.gateway.ui_browser import chrome_options
from tests.support.live import ROOT, Live, wait_until

WIDTH = 1280
QUESTIONS = (
    "What makes the tides?",
    "Write to ada@example.com, please.",
    "Name three sorts of apples.",
    "Why is the sky blue?",
)
POLICIES = ("redact.yaml", "code-names.yaml")


def main() -> None:
    """Write ``docs/images/*.png``."""
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="airi-pictures-", dir="/tmp"))  # a path short enough for sockets
    config = "\n---\n".join(
        path.read_text()
        for path in (
            *(ROOT / "examples" / "policies" / name for name in POLICIES),
            ROOT / "examples" / "workflows" / "support_triage.yaml",
        )
    )
    try:
        with Live(home, config, AIRI_TOOLS_PATH=str(ROOT / "examples" / "tools.py")) as airi:
            run_id = work(airi)
            photograph(airi, run_id, images)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def work(airi: Live) -> str:
    """Make calls of every sort and a run that waits; return the run's id."""
    with airi.client() as client:
        run = client.post(
            "/v1/workflows/support-triage/runs",
            json={"inputs": {"ticket": "I was charged twice.", "customer": "ann"}},
        )
        assert run.status_code < 300, run.text
        replica = first_replica(airi)
        for number in range(36):
            if number % 12 == 5:  # one replica refuses the next call it gets: it is tried elsewhere
                httpx.post(
                    f"{replica}/control", json={"status": 503, "error_rate": 1, "next": 1}, trust_env=False
                )
            call(client, number)
        run_id = str(run.json()["id"])

        def waits() -> bool:
            return bool(client.get(f"/v1/runs/{run_id}").json()["state"] == "waiting")

        wait_until(waits, 60)
    time.sleep(1)  # the last records' way to the file
    return run_id


def first_replica(airi: Live) -> str:
    """The address of the simulated pool's first replica."""
    documents = yaml.safe_load_all((airi.home / "adopted.yaml").read_text())
    pool = next(item for item in documents if item["kind"] == "Pool" and item["metadata"]["name"] == "sim")
    return str(pool["replicas"][0]["url"])


def call(client: httpx.Client, number: int) -> None:
    """One call; some are streamed, one asks for a model there is not."""
    body = {
        "model": "no-such-model" if number == 20 else ("fast", "smart", "sim/small")[number % 3],
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "max_tokens": 60 + 20 * (number % 7),
        "stream": number % 2 == 0,
        "user": ("ann", "bert", "")[number % 3],
    }
    client.post("/v1/chat/completions", json=body, headers={"x-airi-session": f"chat-{number % 5}"})


def photograph(airi: Live, run_id: str, images: Path) -> None:
    """Open each page and keep its picture."""
    with tempfile.TemporaryDirectory() as profile:
        driver = webdriver.Chrome(
            options=chrome_options(Path(profile)), service=Service(shutil.which("chromedriver"))
        )
        try:
            driver.get(airi.base + "/ui/sign-in")
            driver.find_element(By.ID, "key").send_keys(airi.key + Keys.ENTER)
            wait_until(lambda: "/ui/calls" in driver.current_url)
            driver.execute_script("localStorage.setItem('airi-live', '0')")
            take(driver, airi.base + "/ui/calls?since=15m", images / "calls.png", 860)
            take(driver, airi.base + "/ui/calls?since=15m", images / "calls-dark.png", 860, "dark")
            take(driver, airi.base + f"/ui/runs/{run_id}", images / "run.png")
            with airi.client() as client:
                calls = client.get(
                    "/admin/v1/traces", params={"since": "15m", "outcome": "ok", "limit": 200}
                ).json()["data"]
            best = max(
                calls,
                key=lambda c: (
                    not c["run_id"],
                    c["attempts"] > 1,
                    bool(c["policy_hit"]),
                    c["stream"],
                    c["duration_us"],
                ),
            )
            take(
                driver,
                airi.base + f"/ui/traces/{best['trace_id']}?span={best['span_id']}",
                images / "trace.png",
            )
        finally:
            driver.quit()


def take(driver: webdriver.Chrome, url: str, path: Path, height: int = 0, theme: str = "light") -> None:
    """Keep a picture of a page: of its whole length, or of its first ``height`` pixels."""
    driver.set_window_size(WIDTH, 900)
    driver.get(url)
    driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    whole = driver.execute_script("return document.documentElement.scrollHeight")
    frame = 900 - driver.execute_script("return innerHeight")
    driver.set_window_size(WIDTH, (height or whole) + frame)
    driver.save_screenshot(str(path))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
