"""From the JSON of a request to its generation; impossible requests are refused here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .choices import ChoicesRequest
from .generating import Generation, Generations
from .models import ServedModels
from .parameters import CHATS, COMPLETIONS, RESPONSES, checked
from .prompts import items_of, messages_of, of_chat, of_completion
from .refusals import Refused, invalid_type, invalid_value, missing
from .sampling import Sampling, configured
from .settings import Limits, current

NOT_JSON = "We could not parse the JSON body of your request."
TOKENS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class RequestReader:
    """Reader of requests: turns the JSON of a request into settings of a generation.

    served_models: by name; generations: the batch of each model; limits: of the server.
    """

    def __init__(
        self, served_models: ServedModels, generations: Generations, limits: Limits
    ) -> None:
        self.served_models, self.generations, self.limits = served_models, generations, limits

    def read(self, raw: bytes, route: str) -> tuple[ChoicesRequest, dict[str, Any]]:
        """Read the body of a request; return the choices to generate, and its parameters.

        route: name of the path, as `CHATS`. Raises: Refused.
        """
        body = parsed(raw)
        if body.get("model") is None:
            raise missing("model")
        if not isinstance(body["model"], str):
            raise invalid_type("model", "a string", body["model"])
        # the model first: other errors are then counted by its name
        served = self.served_models.find(body["model"])
        record = current()
        record.model = served.name
        parameters = checked(body, route, self.limits)
        tools = None
        if route == COMPLETIONS:
            prompts = of_completion(parameters, served, self.limits.at_once)
        else:
            messages = messages_of(parameters) if route == CHATS else items_of(parameters)
            ids, tools = of_chat(messages, parameters, served)
            prompts = [ids]
        record.prompt = sum(map(len, prompts))
        generation = self.generations.of[served.name]
        n = parameters.get("n", 1)
        # choices are generated at the same time, and each counts as one
        if len(prompts) * n > self.limits.at_once:
            message = f"{len(prompts)} prompts of {n} choices. Expected at most "
            raise invalid_value("n", f"{message}{self.limits.at_once} choices of a request.")
        samplings = [s for ids in prompts for s in self._samplings(parameters, ids, generation, n)]
        # one text or several
        stops = parameters.get("stop", ())
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        ask = ChoicesRequest(generation, prompts, samplings, n, stops, tools, route != COMPLETIONS)
        return ask, parameters

    def _samplings(
        self, parameters: Mapping[str, Any], ids: list[int], generation: Generation, n: int
    ) -> list[Sampling]:
        served = generation.served
        config = configured(served.model.generation_config, parameters)
        config.max_new_tokens = self._token_room(parameters, len(ids), served.context)
        bias = {int(key): float(value) for key, value in parameters.get("logit_bias", {}).items()}
        if wrong := [token for token in bias if token >= served.vocabulary]:
            message = f"{wrong[0]} is no token id of 0 to {served.vocabulary - 1}."
            raise invalid_value("logit_bias", message)
        logprobs = parameters.get("logprobs", False)  # a number in completions, a switch in chats
        top = parameters.get("top_logprobs", 0) if logprobs is True else logprobs
        return [
            Sampling(
                config,
                seed=None
                if parameters.get("seed") is None
                else _torch_seed(parameters["seed"] + i),
                bias=bias,
                frequency=parameters.get("frequency_penalty", 0.0),
                presence=parameters.get("presence_penalty", 0.0),
                top=None if logprobs is False else top,
                streamed=bool(parameters.get("stream") or parameters.get("stop")),
            )
            for i in range(n)
        ]

    def _token_room(self, parameters: Mapping[str, Any], prompt: int, context: int) -> int:
        name = next((name for name in TOKENS if name in parameters), None)
        tokens = parameters[name] if name is not None else 1
        if prompt == 0:
            raise invalid_value("prompt", "it has no tokens.", "empty_string")
        if prompt + tokens > context:
            message = (
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{prompt + tokens} tokens ({prompt} in the prompt, {tokens} in the completion)."
            )
            raise Refused(400, message, param=name, code="context_length_exceeded")
        return min(tokens if name is not None else self.limits.tokens, context - prompt)


def parsed(raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a request's body, in UTF-8.  Raises: Refused, 400."""

    def constant(name: str) -> float:
        raise ValueError(f"{name} is no JSON")

    try:
        body = json.loads(raw.decode(), parse_constant=constant)
        # half of a surrogate pair passes the parser, but cannot be encoded in an answer
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"{NOT_JSON} ({str(error)[:200]})") from error
    if not isinstance(body, dict):
        raise Refused(400, f"{NOT_JSON} (it is no object)")
    return body


def _torch_seed(seed: int) -> int:
    """Return a seed of 64 bits, which torch takes."""
    return (seed + 2**63) % 2**64 - 2**63


ROUTES = {
    "/v1/completions": COMPLETIONS,
    "/v1/chat/completions": CHATS,
    "/v1/responses": RESPONSES,
}
