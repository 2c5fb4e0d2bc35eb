"""Errors in the words of OpenAI's API: a message, a type, the parameter and a code."""

from __future__ import annotations

from typing import Any

GONE = 499  # the client left before its answer was whole, as nginx writes it
DEAD = "The model has stopped after an error. Restart the server; its log says why."
SHOWN = 200  # characters of a client's value in a message
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class Refused(Exception):
    """Error that a client gets as an answer: HTTP status, message, parameter and code."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Return the error as JSON, for an answer or for an event of a stream."""
        # other errors of a client, and all of the server, have one name each
        kind = KINDS.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}


def shown(value: object) -> str:
    """Return a client's value as it may stand in a message: short, and on one line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def invalid_type(param: str, want: str, got: object) -> Refused:
    """Return the error 400 for a value of another type; want: the type in words."""
    message = f"Invalid type for '{param}': expected {want}, but got {shown(got)} instead."
    return Refused(400, message, param=param, code="invalid_type")


def invalid_value(param: str, message: str, code: str = "invalid_value") -> Refused:
    """Return the error 400 for a value of the right type that cannot be; message: says why."""
    return Refused(400, f"Invalid '{param}': {message}", param=param, code=code)


def missing(param: str) -> Refused:
    """Return 400 for a parameter that has no default."""
    message = f"Missing required parameter: '{param}'."
    return Refused(400, message, param=param, code="missing_required_parameter")


def unknown(param: str) -> Refused:
    """Return the error 400 for a parameter that the route does not know."""
    name = shown(param)
    return Refused(
        400, f"Unknown parameter: {name}.", param=param[:SHOWN], code="unknown_parameter"
    )


def unsupported(param: str, got: object, want: str) -> Refused:
    """Return the error 400 for a value that OpenAI's API has, but not this server."""
    message = f"Unsupported value: '{param}' does not support {shown(got)} with this server. {want}"
    return Refused(400, message, param=param, code="unsupported_value")


def broken(cause: str = "An error inside; the server's log says which.") -> Refused:
    """Return 500, which states nothing about the server's inside."""
    return Refused(500, cause)
