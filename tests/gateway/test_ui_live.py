"""The dashboard as a browser meets it: behind the gateway's address, with the headers that browsers send."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.live import Live, wait_until

pytestmark = pytest.mark.integration


def test_a_browsers_write_is_taken_and_another_sites_refused(live: Live) -> None:
    own = {"origin": live.base, "sec-fetch-site": "same-origin"}
    with httpx.Client(base_url=live.base, timeout=30, trust_env=False) as browser:
        assert browser.post("/ui/sign-in", data={"key": live.key}, headers=own).status_code == 303
        found = re.search(r'name="csrf_token" value="([^"]+)"', browser.get("/ui/runs").text)
        assert found is not None
        form = {"csrf_token": found[1]}
        for origin in ("http://evil.test", "null"):
            spoofed = {"origin": origin, "x-forwarded-host": "evil.test"}
            assert browser.post("/ui/sign-out", data=form, headers=spoofed).status_code == 403
        assert browser.post("/ui/sign-out", data=form, headers=own).status_code == 303


def test_the_address_alone_leads_to_the_dashboard(live: Live) -> None:
    with httpx.Client(base_url=live.base, trust_env=False, follow_redirects=True) as browser:
        assert browser.get("/").url.path == "/ui/sign-in"


def test_a_traces_curl_names_the_address_that_was_asked(live: Live) -> None:
    with live.client() as client:
        call = client.post(
            "/v1/chat/completions",
            json={"model": "sim/small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        )
    trace = call.headers["x-airi-trace-id"]
    with live.admin() as admin:
        wait_until(lambda: admin.get(f"/admin/v1/traces/{trace}").status_code == 200)
        assert f"curl {live.base}/v1/chat/completions" in admin.get(f"/ui/traces/{trace}").text
