"""What `helm test` does: ask a router whether it is ready, what it serves, and for one short answer."""

import json
import os
import pathlib
import ssl
import sys
import urllib.error
import urllib.request

context = ssl._create_unverified_context()  # our own router, by the name of its Service
headers = {"content-type": "application/json"}
if "API_KEY_FILE" in os.environ:
    headers["authorization"] = "Bearer " + pathlib.Path(os.environ["API_KEY_FILE"]).read_text().strip()


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["URL"] + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120, context=context) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        hint = "; a key for this test: test.apiKeySecret" if error.code == 401 else ""
        sys.exit(f"{path} answers {error.code}: {error.read().decode(errors='replace')}{hint}")


print("ready:", ask("/readyz")["models"])
model = ask("/v1/models")["data"][0]["id"]
answer = ask("/v1/completions", {"model": model, "prompt": "Hello", "max_tokens": 8})
print(model, "says:", answer["choices"][0]["text"])
assert answer["usage"]["completion_tokens"] > 0
