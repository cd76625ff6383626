"""WebSockets on both sides of the forwarder: `websockets`, or `wsproto` over a plain
socket, which refuses whatever is not RFC 6455 to the letter.

`websocket_peer.py LIBRARY serve` prints its port and sends every message back until
its standard input ends; `websocket_peer.py LIBRARY ask PORT` reads header lines as
JSON from its standard input, sends MESSAGES, and prints how many came back.
"""

import json
import random
import socket
import sys
import threading

from websockets.sync.client import connect
from websockets.sync.server import serve as websockets_serve
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

MESSAGES = 1000
LARGEST = 1 << 20
SUBPROTOCOL = "editor.v1"


def messages(seed):
    """Of 1 byte to 1 MiB, most of them short, each in up to five fragments."""
    chance = random.Random(seed)
    sizes = [1, 125, 126, 127, 65_535, 65_536, LARGEST]
    sizes += [int(2 ** chance.uniform(0, 14)) for _ in range(MESSAGES - len(sizes))]
    chance.shuffle(sizes)
    for size in sizes:
        data = chance.randbytes(size)
        cuts = sorted(chance.randrange(size + 1) for _ in range(chance.randrange(5)))
        yield data, [data[start:end] for start, end in zip([0, *cuts], [*cuts, size])]


class Plain:
    """wsproto over a socket."""

    def __init__(self, peer, kind):
        # A fragment does not wait for the one before it to be acknowledged.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer, self.connection, self.events = peer, WSConnection(kind), []

    def send(self, event):
        self.peer.sendall(self.connection.send(event))

    def next(self):
        """The next event that is no ping, which is answered."""
        while True:
            while not self.events:
                data = self.peer.recv(65_536)
                self.connection.receive_data(data or None)
                self.events.extend(self.connection.events())
            event = self.events.pop(0)
            if not isinstance(event, Ping):
                return event
            self.send(event.response())


def serve_plain(peer):
    plain = Plain(peer, ConnectionType.SERVER)
    with peer:
        while True:
            match plain.next():
                case Request(subprotocols=offered):
                    plain.send(AcceptConnection(subprotocol=offered[0]))
                case BytesMessage(data=data, message_finished=finished):
                    plain.send(BytesMessage(data=bytes(data), message_finished=finished))
                case TextMessage(data=data, message_finished=finished):
                    plain.send(TextMessage(data=data, message_finished=finished))
                case CloseConnection() as close:
                    plain.send(close.response())
                    return


def serve(library):
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    if library == "websockets":

        def echo(peer):
            for message in peer:
                peer.send(message)

        server = websockets_serve(
            echo, sock=listener, max_size=2 * LARGEST, subprotocols=[SUBPROTOCOL], compression=None
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:

        def accept():
            while True:
                peer, _ = listener.accept()
                threading.Thread(target=serve_plain, args=(peer,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def ask_websockets(port, lines, seed):
    lines.pop("host")
    with connect(
        f"ws://127.0.0.1:{port}/ws",
        additional_headers=lines,
        subprotocols=[SUBPROTOCOL],
        max_size=2 * LARGEST,
        compression=None,
    ) as peer:
        assert peer.subprotocol == SUBPROTOCOL
        count = 0
        for data, fragments in messages(seed):
            peer.send(iter(fragments))
            assert peer.recv() == data, len(data)
            count += 1
            if count % 100 == 0:
                assert peer.ping().wait(60), "no pong"
    assert peer.close_code == 1000, peer.close_code
    return count


def ask_plain(port, lines, seed):
    peer = socket.create_connection(("127.0.0.1", port))
    plain = Plain(peer, ConnectionType.CLIENT)
    host = lines.pop("host")
    extra = [(name.encode(), value.encode()) for name, value in lines.items()]
    plain.send(Request(host=host, target="/ws", subprotocols=[SUBPROTOCOL], extra_headers=extra))
    match plain.next():
        case AcceptConnection(subprotocol=agreed):
            assert agreed == SUBPROTOCOL, agreed
        case RejectConnection(status_code=status):
            raise AssertionError(status)
    count = 0
    for data, fragments in messages(seed):
        for at, fragment in enumerate(fragments):
            plain.send(BytesMessage(data=fragment, message_finished=at == len(fragments) - 1))
        answered, finished = bytearray(), False
        while not finished:
            event = plain.next()
            assert isinstance(event, BytesMessage), event
            answered += event.data
            finished = event.message_finished
        assert answered == data, len(data)
        count += 1
        if count % 100 == 0:
            plain.send(Ping(payload=b"here?"))
            event = plain.next()
            assert isinstance(event, Pong) and event.payload == b"here?", event
    plain.send(CloseConnection(code=1000))
    event = plain.next()
    assert isinstance(event, CloseConnection) and event.code == 1000, event
    assert peer.recv(1) == b"", "something behind the close"
    return count


def ask(library, port):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr)
    lines = json.load(sys.stdin)
    print((ask_websockets if library == "websockets" else ask_plain)(port, lines, seed))


if __name__ == "__main__":
    serve(sys.argv[1]) if sys.argv[2] == "serve" else ask(sys.argv[1], int(sys.argv[3]))
