"""Exit status 0 while the Ray node of this container is healthy: its raylet, and on the head its GCS.

`ray health-check` asks only the head, so a dead worker passes if its head is alive; and it takes more than a second of CPU time to
import Ray. This script asks the node's own agent, in 50 ms, at an address for which Ray requires no token.
"""

import os
import sys
import urllib.request

port = os.environ.get("RAY_AGENT_PORT", "52365")  # ray start --dashboard-agent-listen-port
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy between a node and itself
try:
    with direct.open(f"http://127.0.0.1:{port}/api/healthz", timeout=8) as answer:
        print(answer.read().decode())
except OSError as error:  # nothing listens, no answer in time, or status 503, with which the agent reports unhealthy
    sys.exit(f"unhealthy: {error}")
