"""h11 on both sides: it refuses whatever is not HTTP/1.1 to the letter.

`http_peer.py serve` prints its port and answers until its standard input ends;
`http_peer.py ask PORT` reads header lines as JSON from its standard input, makes
every exchange of CASES, and prints how many.
"""

import hashlib
import json
import socket
import sys
import threading

import h11

# Method, body, how the request says its end, how the answer says its own.
METHODS = [("GET", b""), ("HEAD", b""), ("POST", b"x"), ("PUT", b"y" * 300_000), ("DELETE", b"")]
FRAMINGS = ["length", "chunked"]
ANSWERS = ["length", "chunked", "close", "empty", "204", "304", "trailers"]
CASES = [
    (method, body, framing, answer)
    for method, body in METHODS
    for framing in FRAMINGS
    for answer in ANSWERS
]


def receive(peer, connection):
    """The next event; the peer is read where h11 wants more."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(peer.recv(65_536))
            continue
        return event


def message(peer, connection):
    """The next head that is no interim one, its body, and its trailers."""
    head = receive(peer, connection)
    while isinstance(head, h11.InformationalResponse):
        head = receive(peer, connection)
    if isinstance(head, h11.ConnectionClosed):
        return None, b"", []
    body = bytearray()
    while True:
        event = receive(peer, connection)
        if isinstance(event, h11.EndOfMessage):
            return head, bytes(body), list(event.headers)
        body += event.data


def answer(request, body):
    """The events of the answer that a request asks for."""
    wanted = dict(request.headers)[b"x-answer"].decode()
    digest = hashlib.sha256(body).hexdigest().encode()
    text = digest + b" " + request.method
    if wanted in ("204", "304"):
        yield h11.Response(status_code=int(wanted), headers=[("x-digest", digest)])
        yield h11.EndOfMessage()
        return
    headers = {
        "length": [("content-length", str(len(text)))],
        "empty": [("content-length", "0")],
        "close": [("connection", "close")],
    }.get(wanted, [("transfer-encoding", "chunked")])
    yield h11.Response(status_code=200, headers=[("x-digest", digest), *headers])
    if wanted != "empty" and request.method != b"HEAD":
        for at in range(0, len(text), 7):
            yield h11.Data(data=text[at : at + 7])
    trailers = [("x-sum", "1")] if wanted == "trailers" and request.method != b"HEAD" else []
    yield h11.EndOfMessage(headers=trailers)


def serve_one(peer):
    connection = h11.Connection(h11.SERVER)
    with peer:
        while True:
            request, body, _ = message(peer, connection)
            if request is None:
                return
            for event in answer(request, body):
                peer.sendall(connection.send(event) or b"")
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()


def serve():
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)

    def accept():
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=serve_one, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def ask(port):
    lines = json.load(sys.stdin)
    peer, connection = None, None
    for method, body, framing, wanted in CASES:
        if peer is None:
            peer = socket.create_connection(("127.0.0.1", port))
            connection = h11.Connection(h11.CLIENT)
        headers = [*lines.items(), ("x-answer", wanted)]
        if framing == "chunked":
            headers.append(("transfer-encoding", "chunked"))
        elif body:
            headers.append(("content-length", str(len(body))))
        peer.sendall(connection.send(h11.Request(method=method, target="/a?b", headers=headers)))
        for at in range(0, len(body), 50_000):
            peer.sendall(connection.send(h11.Data(data=body[at : at + 50_000])))
        peer.sendall(connection.send(h11.EndOfMessage()) or b"")
        response, answered, trailers = message(peer, connection)
        case = (method, len(body), framing, wanted)
        status = int(wanted) if wanted in ("204", "304") else 200
        digest = hashlib.sha256(body).hexdigest().encode()
        assert response.status_code == status, (case, response)
        assert dict(response.headers)[b"x-digest"] == digest, case
        has_body = method != "HEAD" and wanted not in ("204", "304", "empty")
        assert answered == (digest + b" " + method.encode() if has_body else b""), (case, answered)
        assert trailers == ([(b"x-sum", b"1")] if wanted == "trailers" and method != "HEAD" else []), (case, trailers)
        if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            connection.start_next_cycle()
        else:
            peer.close()
            peer = None
    print(len(CASES))


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else ask(int(sys.argv[2]))
