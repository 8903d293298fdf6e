"""Checks the page of a served demo model in headless Chromium, over its debugging protocol. `scripts/test-clients --more`
starts the server and runs this:

    test-page.py URL GENERATED.json

`GENERATED.json` is what `retie generate --json` says of a prompt. Needs the package `websockets`; without Chromium or
Chrome it says that it was skipped.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

from websockets.sync.client import connect

url, generated = sys.argv[1:]
with open(generated, encoding="utf-8") as file:
    generated = json.load(file)


class Page:
    """A tab of a browser."""

    def __init__(self, socket):
        self.socket, self.number, self.failures = socket, 0, []
        for domain in ("Runtime", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("method") == "Runtime.exceptionThrown":
                self.failures.append(message["params"])
            if message.get("id") == self.number:
                return message["result"]

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, name):
        return self.run(f"document.getElementById({name!r}).textContent")

    def wait(self, name, good):
        deadline = time.monotonic() + 30
        while not good(self.text(name)):
            assert time.monotonic() < deadline, f"`{name}` is {self.text(name)!r}"
            time.sleep(0.05)
        return self.text(name)

    def submit(self, **values):
        for name, value in values.items():
            self.run(f"document.getElementById({name!r}).value = {json.dumps(value)}")
        self.run("document.getElementById('form').requestSubmit()")


def check(page):
    page.call("Page.navigate", url=url)
    time.sleep(0.5)
    page.wait("model", lambda text: text == "demo, context of 256 tokens")
    number = len(generated["ids"])
    page.submit(prompt=generated["prompt"], max_tokens=str(number), temperature="0")
    page.wait("reason", lambda text: text == "length")
    page.wait("tokens", lambda text: text == str(number))
    assert page.text("text") == generated["prompt"] + generated["text"], page.text("text")
    assert page.text("prompt_tokens") == str(generated["prompt_tokens"]) and page.text("first").endswith(" ms")
    pieces = page.run("document.querySelectorAll('#text span').length")
    assert pieces > number // 2, f"the text came in {pieces} pieces"
    page.wait("generated", lambda text: text.isdigit() and int(text) >= number)
    page.submit(mode="chat", prompt="<b>Who</b>?")
    page.wait("reason", lambda text: text in ("length", "stop"))
    assert page.run("document.querySelector('#text b')") is None
    page.submit(max_tokens="9999")
    page.wait("text", lambda text: "9999 new ones are asked for" in text)
    # The button stops a text that runs.
    page.submit(mode="text", max_tokens="240")
    page.run("document.getElementById('stop').click()")
    page.wait("reason", lambda text: text in ("you", "length", "stop"))
    assert not page.failures, page.failures


browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if browser is None:
    print("skipped: the page (no Chromium)")
    sys.exit()
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    chromium = subprocess.Popen([browser, *options, "about:blank"], stderr=subprocess.PIPE, text=True)
    try:
        address = next(line.split()[-1] for line in chromium.stderr if line.startswith("DevTools listening on"))
        port = address.split("/")[2]
        with urllib.request.urlopen(f"http://{port}/json") as answer:
            tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"]) as socket:
            check(Page(socket))
    finally:
        chromium.kill()
        chromium.wait()
print("ok: the page in headless Chromium: a text that streams in, its counters, errors, and the button that stops it")
