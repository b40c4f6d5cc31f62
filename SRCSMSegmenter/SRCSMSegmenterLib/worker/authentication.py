# SPDX-License-Identifier: Apache-2.0
"""Proof of knowing a token without sending it: the challenge of `multiprocessing` in Python 3.12.

That of Python 3.11 knows HMAC-MD5 alone and compares digests byte by byte. Here the digest is
HMAC-SHA-256 and is compared in constant time. A peer that uses Python 3.11's own functions is
answered, and may answer, in the older way, as in Python 3.12.
"""

import hmac
import os
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection

CHALLENGE, WELCOME, FAILURE = b"#CHALLENGE#", b"#WELCOME#", b"#FAILURE#"
SHA256 = b"{sha256}"
RANDOM_BYTES = 40
LONGEST = 256
MD5_BYTES = 16


def deliver_challenge(connection: Connection, token: bytes) -> None:
    """Have the other end prove that it knows the token.

    Raises:
        multiprocessing.AuthenticationError: it does not.
        EOFError, OSError: it is gone.
    """
    message = SHA256 + os.urandom(RANDOM_BYTES)
    connection.send_bytes(CHALLENGE + message)
    response = connection.recv_bytes(LONGEST)
    digest = "md5" if len(response) == MD5_BYTES else "sha256"
    if not hmac.compare_digest(response, _response(token, message, digest)):
        connection.send_bytes(FAILURE)
        raise AuthenticationError("the other end does not know the token")
    connection.send_bytes(WELCOME)


def answer_challenge(connection: Connection, token: bytes) -> None:
    """Prove to know the token; for errors see `deliver_challenge`."""
    message = connection.recv_bytes(LONGEST)
    if not message.startswith(CHALLENGE):
        raise AuthenticationError("the other end sends no challenge")
    message = message.removeprefix(CHALLENGE)
    digest = "sha256" if message.startswith(SHA256) else "md5"
    connection.send_bytes(_response(token, message, digest))
    if connection.recv_bytes(LONGEST) != WELCOME:
        raise AuthenticationError("the other end knows another token")


def _response(token: bytes, message: bytes, digest: str) -> bytes:
    mac = hmac.new(token, message, digest).digest()
    return mac if digest == "md5" else SHA256 + mac
