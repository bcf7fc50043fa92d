"""An endpoint as an engine holds it: what it is called, and what works for its requests."""

from __future__ import annotations

from engine.counts import check_count
from engine.errors import UserError
from engine.model import Ranks
from engine.remote.address import Address
from engine.remote.client import Client
from engine.remote.loop import LoopThread
from engine.remote.runner import RemoteRunner

DEFAULT_IN_FLIGHT = 64  # requests


class RemoteModel:
    """One model of an endpoint, in the place of an `LLM`."""

    has_score_head = False
    tokenizer = None  # it is the endpoint's
    ranks = Ranks()

    def __init__(self, name: str, runner: RemoteRunner, model: str, context: int | None):
        self.name = name  # without user and password
        self.folder = name  # stands where the folder of a checkpoint would
        self.runner, self.model = runner, model
        self.context = context  # tokens, where the endpoint says so

    @classmethod
    def load(cls, name: str, *, max_in_flight: int | None, seconds: float) -> RemoteModel:
        """Asks an endpoint for its models. Raises UserError where it does not answer, or `name` does not name one.

        At most `max_in_flight` requests run at once; one that hears nothing for so many `seconds` is sent anew.
        """
        max_in_flight = check_count("max_batch", DEFAULT_IN_FLIGHT if max_in_flight is None else max_in_flight)
        address, thread = Address.parse(name), LoopThread()
        client = Client(address, max_in_flight, seconds)
        runner = RemoteRunner(client, thread, max_in_flight)
        models = thread.run(client.models()).result()
        chosen = _chosen(address, models)
        named = Address(address.url, chosen["id"])
        context = chosen.get("max_model_len")
        return cls(named.name, runner, chosen["id"], context if type(context) is int and context > 0 else None)


def _chosen(address: Address, models: list[dict]) -> dict:
    """What the endpoint says of the model that is named, or of its only one."""
    if address.model is not None:
        return next((each for each in models if each["id"] == address.model), {"id": address.model})
    if len(models) == 1:
        return models[0]
    names = ", ".join(each["id"] for each in models) or "an unknown number of models"
    raise UserError(f"{address.name} serves {names}: name one behind the URL, as in {address.name}#model")
