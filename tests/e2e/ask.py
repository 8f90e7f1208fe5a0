"""HTTP calls from a host of the lab: {url, token, calls: [{method, path, body}]} on standard input.

Prints their answers as a list; bytes that are no JSON come as text. Standard library only.
"""

import json
import sys
import urllib.request

asked = json.load(sys.stdin)
answers = []
for call in asked["calls"]:
    body = json.dumps(call["body"]).encode() if "body" in call else None
    request = urllib.request.Request(
        asked["url"] + call["path"], data=body, method=call.get("method", "GET"),
        headers={"Authorization": f"Bearer {asked['token']}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
        is_json = answer.headers.get_content_type() == "application/json"
        answers.append(json.loads(text) if is_json else text)
print(json.dumps(answers))
