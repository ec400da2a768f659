"""An MQTT broker for the demo: amqtt, in a process that ends when whoever started it is gone.

amqtt speaks MQTT 3.1.1 only and loses messages for absent subscribers: good enough to look on, no place for a line.

    python tools/demo_broker.py --port 1883

With `--until-eof` it ends at the end of its standard input, so that it can't outlive its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys


async def serve(port: int, *, until_eof: bool) -> None:
    """Serve on loopback until interrupted, or until standard input ends."""
    from amqtt.broker import Broker

    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = Broker({"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}, "plugins": anonymous})
    await broker.start()
    if until_eof:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    else:
        print(f"a broker for trying out, on 127.0.0.1:{port}; Ctrl-C ends it", file=sys.stderr, flush=True)
        await asyncio.Event().wait()
    await broker.shutdown()


def main() -> int:
    """Read the port and serve."""
    parser = argparse.ArgumentParser(description="An MQTT 3.1.1 broker for trying out (amqtt).")
    parser.add_argument("--port", type=int, default=1883, help="loopback port (1883)")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(args.port, until_eof=args.until_eof))
    return 0


if __name__ == "__main__":
    sys.exit(main())
