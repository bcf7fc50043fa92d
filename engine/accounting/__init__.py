"""The cost of a search: tokens and FLOPs, per problem and purpose."""

from engine.accounting.exchange import Exchange
from engine.accounting.flops import ModelShape, attention_flops, forward_flops
from engine.accounting.ledger import PURPOSES, Ledger

__all__ = ["PURPOSES", "Exchange", "Ledger", "ModelShape", "attention_flops", "forward_flops"]
